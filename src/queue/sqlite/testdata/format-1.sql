-- A queue as format 1 left it: one message that waits for its second attempt.
CREATE TABLE node (                  -- who may own legs; a settle with another epoch is refused
    id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    alive_until INTEGER              -- for a fleet; NULL: owns until its next start
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (               -- what was ever accepted and swept, for the balance
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES
    ('messages-accepted', 0), ('legs-accepted', 0), ('messages-swept', 0), ('legs-swept', 0), ('probe', 0);

CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    listener TEXT NOT NULL,
    client TEXT NOT NULL,
    ptr TEXT,
    helo TEXT NOT NULL,
    protocol TEXT NOT NULL,
    sender TEXT NOT NULL,            -- '' is the null sender
    body_type TEXT NOT NULL,         -- 7bit, 8bitmime
    smtputf8 INTEGER NOT NULL,
    size INTEGER NOT NULL,
    header_from TEXT NOT NULL,
    subject TEXT NOT NULL,
    message_id TEXT NOT NULL,
    prefix BLOB NOT NULL,            -- header fields that every leg carries
    facts TEXT NOT NULL,             -- JSON: what was known when the rules decided
    rules_hash TEXT NOT NULL,
    legs INTEGER NOT NULL,           -- as counted at acceptance
    cause TEXT                       -- the leg whose end made this message, <message number>.<n>
) STRICT;

CREATE TABLE body (                  -- there while a leg needs it
    id INTEGER PRIMARY KEY,          -- the message's id
    file TEXT,                       -- under bodies/; NULL: the bytes stand here
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    bytes BLOB
) STRICT;
CREATE INDEX body_file ON body (file) WHERE file IS NOT NULL;

CREATE TABLE leg (
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    alias TEXT NOT NULL,             -- as given at RCPT
    target TEXT NOT NULL,
    target_name TEXT,
    earlier_targets TEXT,            -- JSON: where it was to go before
    route TEXT NOT NULL,
    sender TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    since INTEGER NOT NULL,          -- when it entered its state
    due INTEGER,                     -- NULL: waits for an operator, or is final
    ended INTEGER,                   -- NULL: open
    owner TEXT,                      -- node.id while it is in flight
    epoch INTEGER,
    attempts INTEGER NOT NULL,
    prefix BLOB NOT NULL,            -- header fields of this copy
    cuts TEXT,                       -- JSON [[from, to], ...]: ranges of the original left out
    rules TEXT NOT NULL,             -- JSON: names of the rules that applied
    notices TEXT,                    -- JSON: whom its end may be told, what was asked; NULL: nobody, nothing
    body INTEGER,                    -- body.id of an altered copy; NULL: the message's own
    dedupe BLOB,
    dsn TEXT,                        -- sent, admin, suppressed, none
    actor TEXT,                      -- the operator who moved it last
    started INTEGER,                 -- the last attempt
    took INTEGER,
    host TEXT,
    stage TEXT,
    result TEXT,
    reply TEXT,
    PRIMARY KEY (message, n)
) STRICT, WITHOUT ROWID;
-- `ended` is NULL in all of it; it stands there so that counting needs no look into the table.
CREATE INDEX leg_open ON leg (route, owner, due, state, ended) WHERE ended IS NULL;

CREATE TABLE attempt (               -- all but a delivery at the first attempt, which stands in its leg
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    number INTEGER NOT NULL,
    started INTEGER NOT NULL,
    took INTEGER NOT NULL,           -- milliseconds
    host TEXT NOT NULL,
    stage TEXT NOT NULL,
    result TEXT NOT NULL,
    reply TEXT NOT NULL,
    PRIMARY KEY (message, n, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE action (                -- what operators did
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    number INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (message, n, at, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE dedupe (                -- the leg that stands for all its like
    key BLOB PRIMARY KEY,
    message INTEGER NOT NULL,
    n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 1349416051;
PRAGMA user_version = 1;
UPDATE counter SET value = 1 WHERE name IN ('messages-accepted', 'legs-accepted');
INSERT INTO node VALUES ('local', 3, NULL);
INSERT INTO message VALUES (1, 1000, 'mx', '192.0.2.1', NULL, 'client.example', 'ESMTP', 'client@example.org', '7bit', 0,
    15, 'Client <client@example.org>', 'It is broken', '<1@example.org>', CAST('Received: from client.example' || char(13, 10) AS BLOB),
    '{"auth":{"spf":"pass"}}', '0', 1, NULL);
INSERT INTO body VALUES (1, NULL, 15, x'2d990769efee8fa29469c8ff304ddda5d9b92c424b204acb33423d4e9eb9e77f', x'413a20620d0a0d0a68656c6c6f0d0a');
INSERT INTO leg VALUES (1, 1, 'aide@solarmora.com', 'case@crm.example', 'salesforce', NULL, 'crm',
    'SRS0=GesK=JK=example.org=client@srs.solarmora.com', 'queued', 'tempfail', '451 4.3.0 later', 1000, 61000, NULL, NULL,
    NULL, 1, CAST('Delivered-To: aide@solarmora.com' || char(13, 10) AS BLOB), NULL, '["aide to the CRM"]', NULL, NULL, NULL,
    NULL, NULL, 1000, 20, 'crm.example [192.0.2.9]', 'dot', 'tempfail', '451 4.3.0 later');
INSERT INTO attempt VALUES (1, 1, 1, 1000, 20, 'crm.example [192.0.2.9]', 'dot', 'tempfail', '451 4.3.0 later');
