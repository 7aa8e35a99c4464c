-- What branch/records.py says, one table a record. Times named *_at are seconds since 1970, others seconds since boot;
-- columns named spec, options, crashes, last_words, value of entries and data hold JSON.

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- What the branch remembers of itself.
CREATE TABLE facts (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- This branch's own definitions; the neighbourhood's stand in entries.
CREATE TABLE apps (
    name TEXT NOT NULL PRIMARY KEY,
    spec TEXT NOT NULL,
    generation INTEGER NOT NULL,
    created_at REAL NOT NULL,
    -- path of the file that defines it; empty: the API made it
    source TEXT NOT NULL
) WITHOUT ROWID;

-- Which apps an operator of this branch wrote, and how: in apps or in entries, where others may write as well.
CREATE TABLE authored (
    app TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE queues (
    app TEXT NOT NULL REFERENCES apps (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    exchange TEXT,
    exchange_type TEXT NOT NULL,
    routing_key TEXT,
    options TEXT NOT NULL,
    PRIMARY KEY (app, name)
) WITHOUT ROWID;

-- No reference to apps: the definition of an app may go or come later than the instances that a branch has taken.
CREATE TABLE instances (
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,
    generation INTEGER NOT NULL,
    created_at REAL NOT NULL,
    deleting INTEGER NOT NULL,
    -- as of apps
    source TEXT NOT NULL,
    replica INTEGER NOT NULL,
    -- all five of a placed one, none of a pinned one
    request TEXT,
    digest TEXT,
    named INTEGER,
    accepted_at REAL,
    waiting INTEGER,
    PRIMARY KEY (app, name)
) WITHOUT ROWID;

CREATE TABLE runs (
    app TEXT NOT NULL,
    instance TEXT NOT NULL,
    -- the automaton
    state TEXT NOT NULL,
    wanted TEXT NOT NULL,
    run INTEGER NOT NULL,
    alive INTEGER NOT NULL,
    held INTEGER NOT NULL,
    crashes TEXT NOT NULL,
    restarts INTEGER NOT NULL,
    step INTEGER NOT NULL,
    deadline REAL,
    reason TEXT NOT NULL,
    blamed INTEGER NOT NULL,
    -- its process
    boot TEXT NOT NULL,
    nonce TEXT NOT NULL,
    intent REAL NOT NULL,
    process_boot TEXT,
    process_pid INTEGER,
    process_started INTEGER,
    started_at REAL,
    observed_generation INTEGER NOT NULL,
    launched TEXT NOT NULL,
    -- the process before: `ended` with neither code nor signal is an exit that nobody saw
    ended INTEGER NOT NULL,
    exit_code INTEGER,
    exit_signal INTEGER,
    exit_why TEXT NOT NULL,
    last_exit_at REAL,
    last_words TEXT NOT NULL,
    PRIMARY KEY (app, instance),
    FOREIGN KEY (app, instance) REFERENCES instances (app, name) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    scope TEXT NOT NULL,
    created_at REAL NOT NULL,
    expires_at REAL
) WITHOUT ROWID;

-- AUTOINCREMENT remembers the highest id ever given, also when the event itself has expired.
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    type TEXT NOT NULL,
    app TEXT,
    instance TEXT,
    data TEXT NOT NULL
);

-- The definitions that the neighbourhood shares; without a value they are tombstones. The name of an app's is empty.
CREATE TABLE entries (
    kind TEXT NOT NULL,
    app TEXT NOT NULL,
    name TEXT NOT NULL,
    time INTEGER NOT NULL,
    branch TEXT NOT NULL,
    value TEXT,
    cascade INTEGER NOT NULL,
    PRIMARY KEY (kind, app, name)
) WITHOUT ROWID;

-- Without an instance: the request was cancelled.
CREATE TABLE outcomes (
    request TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL,
    at REAL NOT NULL,
    app TEXT NOT NULL,
    instance TEXT,
    ended INTEGER NOT NULL,
    offerer TEXT NOT NULL,
    origin TEXT NOT NULL
) WITHOUT ROWID;
