"""Progress of long work: the phases that functions report to, and their display."""

from forecaster.progress.phases import NO_PROGRESS as NO_PROGRESS
from forecaster.progress.phases import Progress as Progress
from forecaster.progress.phases import ShieldedProgress as ShieldedProgress
