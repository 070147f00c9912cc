#!/bin/sh
# Creates the databases of the registry, of its users and of the ledger, each for its own role. The image of PostgreSQL runs this once,
# when its volume is empty; the passwords are in the files of $SECRETS. The ledger's role cannot read the registry, and vice versa.
set -eu
: "${SECRETS:=/run/secrets}"
for name in registry_database_password ledger_database_password; do
    if [ ! -s "$SECRETS/$name" ] || grep -Eiq '(change|replace)[-_ ]?me' "$SECRETS/$name"; then
        echo "Expected a password in $SECRETS/$name; found none. Create it with docker/create_secrets.py." >&2
        exit 2
    fi
done
export SECRETS
psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --set ON_ERROR_STOP=1 --no-psqlrc --quiet <<'SQL'
\set registry_password `cat "$SECRETS/registry_database_password"`
\set ledger_password `cat "$SECRETS/ledger_database_password"`
CREATE ROLE registry LOGIN PASSWORD :'registry_password';
CREATE ROLE ledger LOGIN PASSWORD :'ledger_password';
CREATE DATABASE registry OWNER registry;
CREATE DATABASE registry_users OWNER registry;
CREATE DATABASE ledger OWNER ledger;
REVOKE CONNECT ON DATABASE registry, registry_users, ledger FROM PUBLIC;
SQL
