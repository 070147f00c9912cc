"""From a data frame to a panel of series: columns, timestamps, the regular time grid."""
