"""maild: the mail on a server and the mail on this disk, kept equal.

One picture: two sides and a middle. `local` is this disk, `remote` other machines; `core` decides, `engine` conducts.

    cli.py             arguments → check, sync or demo; imports lazily, starts fast; __main__.py: `python -m maild`
    commands/
        sync.py        one pass over everything, JSON or a plan; progress.py: what a terminal shows meanwhile
    demo.py            the whole of it on this machine, against the servers of testing/
    log.py             structlog set-up, redaction, catalogue of event names
    engine/            what runs when
        account.py     one account: which mailboxes, in which order, over how many sessions; the owner of its state
        sync.py        one pass over one mailbox: scan, reconcile, guard, propagate
        pull.py        its messages on their way here, over as many sessions as lend a hand
        propagate.py   operations: in batches, effect then commit; adoption, which is the recovery
        report.py      what a pass is doing and has done; limits.py: descriptors and memory of the process
    local/             this machine's disk
        maildir.py     a mailbox: what is in it; deliver, reflag, remove, so that a crash harms nothing
        directory.py   its cur, new and tmp, held open; scan.py: which files they hold
        spool.py       a message too big for memory, on its way in
        keywords.py    keywords ↔ the letters a to z, as Dovecot keeps them
        durable.py     temporary, fsync, rename, fsync the directory; the batch barrier
        state.py       SQLite: pairs, cursors; schema.py: its tables and their versions
        lock.py        one maild per state directory; marker.py: proof that this is the account's Maildir
    remote/            other machines
        __init__.py    the one `match` on protocol names
        net.py         TLS contexts, timeouts, foreign exceptions → ours
        auth.py        where a secret comes from
        imap/          remote.py (the port) · session.py (one connection) · parse.py (octets → values, pure)
    config/            TOML → frozen values; every error names file, line and key path
        files.py       finds and judges the files; build.py settles every default; values.py is what comes out
        schema.py      every key with its type; rules.py: what keys mean together; units.py: durations, sizes, paths
        problems.py    the texts of its errors; locate.py: on which line; unbuilt.py: keys that do nothing yet
    core/              pure: nouns and decisions; no await, no I/O, no clock, no randomness
        model.py       what a mailbox, a message on each side, a pair and an operation are
        ports.py       what a protocol must offer
        reconcile.py   (base, local, remote) → operations; holds the decision table; guard.py refuses to empty a side
        identity.py    what a message is, whichever side it is on
        flags.py       IMAP flags and keywords ↔ Maildir letters
        names.py       mailbox name ↔ directory name; no way out of the root
        errors.py      what can go wrong; each error knows how far it reaches and whether to try again
    testing/           servers in memory, for the demo and the tests: store.py (mail in memory), wire.py,
                       faults.py, dialogue.py (a server that plays a text file), samples.py (the demo's mail),
                       witness.py (a Maildir as a stranger reads it, compared with a store)
        imap/          server.py, session.py, syntax.py, fetch.py, search.py; commands.py names what access.py,
                       mailboxes.py, opening.py, messages.py and delivery.py carry out

To read it in an hour: core/model, core/ports, core/reconcile; engine/sync, engine/propagate; then one side,
local/maildir or remote/imap/session with its parse; last engine/account, which ties them together.

Imports point right only, and what a bar divides never sees each other (tests/test_import_rule.py keeps it):

    cli, commands, demo → log → engine → local | remote → config → core

`core` and every `parse.py` import only `core` and those parts of the standard library that do no I/O. A wire library
has one importer: aioimaplib belongs to remote/imap/session.py. Only demo.py and the tests import `testing`.
"""

__version__ = "0.1.0"
