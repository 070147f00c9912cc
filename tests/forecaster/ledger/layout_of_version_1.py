"""The layout of a ledger of version 1, word for word as version 0.1 of forecaster created it in SQLite. It never changes."""

VERSION_1_SQL = (
    """CREATE TABLE ledger_actuals (
	"key" VARCHAR(32) NOT NULL,
	stamp BIGINT NOT NULL,
	y FLOAT NOT NULL,
	told_at FLOAT NOT NULL,
	PRIMARY KEY ("key", stamp)
)""",
    """CREATE TABLE ledger_drifts (
	digest VARCHAR(64) NOT NULL,
	state TEXT NOT NULL,
	made_at FLOAT NOT NULL,
	PRIMARY KEY (digest)
)""",
    """CREATE TABLE ledger_facts (
	name VARCHAR(64) NOT NULL,
	value TEXT NOT NULL,
	PRIMARY KEY (name)
)""",
    """CREATE TABLE ledger_forecasts (
	number INTEGER NOT NULL,
	made_at FLOAT NOT NULL,
	name TEXT NOT NULL,
	version TEXT NOT NULL,
	digest VARCHAR(64) NOT NULL,
	"key" VARCHAR(32) NOT NULL,
	id TEXT,
	part TEXT,
	origin BIGINT NOT NULL,
	ending BIGINT NOT NULL,
	horizon INTEGER NOT NULL,
	scale FLOAT,
	stamps TEXT NOT NULL,
	body TEXT NOT NULL,
	PRIMARY KEY (number),
	CONSTRAINT ledger_forecasts_once UNIQUE (digest, "key", origin)
)""",
    """CREATE INDEX ledger_forecasts_by_series ON ledger_forecasts ("key", ending)""",
    """CREATE INDEX ledger_forecasts_by_time ON ledger_forecasts (made_at)""",
    """CREATE INDEX ledger_actuals_by_time ON ledger_actuals (told_at)""",
)
