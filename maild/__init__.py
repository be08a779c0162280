"""maild: the mail on a server and the mail on this disk, kept equal.

One picture: two sides and a middle. `local` is this disk, `remote` other machines; `core` decides, `engine` conducts.

    cli.py             arguments → one command; imports lazily, starts fast; __main__.py: `python -m maild`
    commands/
        sync.py        one pass over everything, JSON or a plan; sync_here.py: without a daemon, in this process;
                       progress.py: what a terminal shows meanwhile
        sendmail.py    a message from standard input into the outbox; outbox.py: what is in it, and sending it now
        status.py      what is going on, as JSON or on a terminal; standing.py: the same in words
        approve.py     the user's word that a refused plan is right
        run.py         the daemon in the foreground; reload.py: it reads its config again
        login.py       logging in at an OAuth 2.0 provider
        account.py     accounts listed, removed, their passwords changed; account_add.py: one set up, from its address;
                       account_options.py: what may be given; account_servers.py: where its servers are;
                       account_draft.py: what is known of it so far; asking.py: questions at a terminal
        doctor.py      what is between this machine and the mail
        options.py     what all these may be given; streams.py: standard output and error, whatever they go to
        manual.py      manual pages and shell completions, from the options and the schema
    demo/              the whole of it on this machine, against the servers of testing/: steps.py is what is shown
        stage.py       the commands and the daemon as processes, and how they are waited for; servers.py: the other side
        screen.py      text on a terminal or in a pipe; place.py: the directory that it happens in
    daemon.py          composition root: config → accounts → one task group; signals; systemd; what clients ask
    control.py         the daemon's Unix socket, both ends
    log.py             structlog set-up, redaction, catalogue of event names
    engine/            what runs when
        keeper.py      one account in the daemon: when its passes are made; listen.py: who says so, server and disk
        sender.py      the outbox in the daemon; dispatch.py: where all senders run; hooks.py: the user's programs, told
                       what happened
        network.py     notices that addresses changed or the machine slept
        supervise.py   keeps a task alive: back-off, turns at a host; the only place that may catch everything
        account.py     one account, kept: the owner of its state; how a pass begins, what is told of it
        whole.py       one pass over an account: its mailboxes, together where messages may have moved, else singly
        visits.py      which of them have to be opened; crew.py: who does it, sessions that help each other
        sync.py        one mailbox's pass: what is new on either side, what is to be done, the guard's word on it
        carry_out.py   doing it, here and on the server; finish.py: noting where we are; foretell.py: a dry run instead
        look.py        what changed on this disk; mailboxes.py: mailboxes made, renamed, deleted, on either side
        moves.py       messages that moved between mailboxes, found before anything else is decided; elsewhere.py: those
                       that may have moved to where a pass does not look
        proof.py       what messages on the server contain, before one is removed because of an equal one
        adopt.py       what is on both sides without a pair gets one: the one recovery; untold.py: if it was sent from
                       here and moved on; delivered.py: if it was delivered here and moved on
        apply.py       changes to local files; push.py: changes on the server, new messages included
        pull.py        messages on their way here, over as many sessions as lend a hand
        poll.py        one poll of a POP3 account: retrieve.py gets what is new, prune.py deletes there what is due
        propagate.py   deliveries to this disk, in batches, files first and then the state
        accept.py      an outgoing message: to whom, through which account, what it looks like on the wire
        submit.py      draining the outbox; wave.py: its messages on their way, each step recorded before it is made;
                       aftermath.py: the copy in Sent, reports, forgetting; doubts.py: was it sent? the server's Sent;
                       own_copies.py: does the server keep copies of its own?
        status.py      what all accounts and the outbox are doing, as one document, from stored state
        lifetime.py    how work on an account begins and ends, whatever its protocol
        report.py      what a pass is doing and has done; limits.py: descriptors and memory of the process
        accounts.py    the files of accounts that maild writes; keeping.py: passwords that it keeps
        doctor.py      an account looked at layer by layer; surroundings.py: disk, limits, clock, systemd
    local/             this machine's disk
        maildir.py     a mailbox: what is in it; reflag, move, remove, so that a crash harms nothing
        directory.py   its cur, new and tmp, held open; scan.py: which files they hold
        delivery.py    messages into mailboxes, in batches; spool.py: one too big for memory, on its way in
        outgoing.py    a message on its way to the server, in its wire form
        mailboxes.py   directories of mailboxes renamed and removed; survey.py: which there are and which changed
        keywords.py    keywords ↔ the letters a to z, as Dovecot keeps them
        durable.py     temporary, fsync, rename, fsync the directory; the batch barrier
        state.py       SQLite: pairs, cursors; schema.py: its tables and their versions; pairs.py: rows of pairs;
                       withheld.py: what was not done: messages not taken, plans refused;
                       overview.py: what a person is told of all that, read beside its owner
        outbox.py      the spool of outgoing messages; outboxfiles.py: its files; itemfile.py: what is known of one, as
                       TOML; journal.py: what is in hand; lately.py: what has left it and may be on a server; once.py:
                       letters of our own, delivered exactly once; sent.py: which mailbox is for what was sent
        maildrop.py    what is known of a POP3 maildrop; elsewhere.py: files that a reader moved to other mailboxes
        notify.py      what systemd is told
        watch.py       changes on this disk, heard of as they are made
        lock.py        one maild per state directory; marker.py: proof that this is the account's Maildir
    remote/            other machines
        __init__.py    the one `match` on protocol names
        net.py         TLS contexts, timeouts, foreign exceptions → ours; pace.py: turns at a host
        auth.py        where a secret comes from, when it is no longer tried; keyring.py: the desktop's secret service
        masking.py     secrets taken out of what servers say
        sasl.py        ways to log in, the same for all protocols; scram.py: the one that proves and sends nothing
        discover.py    where an address has its servers; autoconfig.py: as its provider says; dns.py: SRV and MX
        probe.py       a server looked at without logging in; trial.py: logging in once, to see whether it works
        oauth.py       access tokens, refreshed in time; tokens.py: where they are kept; oauth_login.py: the first ones
        smtp.py        one SMTP connection: commands and replies; submission.py: logging in, messages over it
        imap/          remote.py (the port), session.py (one connection), parse.py (octets → values, pure)
            receive.py   events to the commands they belong to; line.py: octets both ways, deflate.py: compressed
            login.py     by the strongest mechanism there is; answers.py: what a server's refusals mean
            listing.py   which mailboxes there are; naming.py: being created, renamed, deleted
            box.py       one open mailbox: what is in it, what has changed; opening.py: SELECT, and what comes with it
            push.py      having the server tell by itself; told.py: what it says in NOTIFY and IDLE; experience.py: what
                         it has taught about both; liveness.py: proof by TCP that a line is alive
            stream.py    its messages on their way here; facts.py: what tells them apart; dates.py: INTERNALDATE
            append.py    messages on their way there; change.py: flags, moving, expunging; sets.py: UIDs on the wire;
                         lookup.py: one message found by its head
        pop3/          remote.py (an open maildrop), session.py (one connection), parse.py (octets → replies, pure)
    config/            TOML → frozen values; every error names file, line and key path
        files.py       finds and judges the files; build.py settles every default; values.py is what comes out
        schema.py      every key with its type; rules.py: what keys mean together; units.py: durations, sizes, paths
        places.py      where config and state are; senders.py: who may send, read quickly;
                       outline.py: which accounts there are, as quickly; plain.py: TOML as most write it
        problems.py    the texts of its errors; locate.py: on which line
    core/              pure: nouns and decisions; no await, no I/O, no clock, no randomness
        model.py       what a mailbox, a message on each side, a pair and an operation are
        ports.py       what a protocol must offer
        reconcile.py   (base, local, remote) → operations; holds the decision table; guard.py refuses to empty a side
        moves.py       what vanished here and appeared there has moved; mailboxes.py: the same table for mailboxes
        maildrop.py    what to get from a POP3 maildrop, what to delete there, what is held back
        identity.py    what a message is, whichever side it is on; likeness.py: whether one is the one that was sent
        flags.py       IMAP flags and keywords ↔ Maildir letters
        outgoing.py    an item of the outbox and what an attempt makes of it; backoff.py: when the next one is
        addresses.py   recipients, read with certainty or refused; head.py: the fields of a message that is to be sent
        notices.py     what a sender is told of a message that does not arrive (RFC 3464)
        names.py       mailbox name ↔ directory name; no way out of the root; roles.py: which one is for what was sent
        providers.py   servers of big providers, known without asking; quirks.py: what is peculiar about servers
        errors.py      what can go wrong; each error knows how far it reaches and whether to try again
    testing/           servers in memory, for the demo and the tests: store.py (mail in memory), wire.py,
                       faults.py, sasl.py (their side of logging in), dialogue.py (a server that plays a text
                       file), samples.py (the demo's mail), smtp.py (a submission server), witness.py (a Maildir as
                       a stranger reads it, compared with a store), memory.py (the port without a protocol)
        imap/          server.py, session.py, syntax.py, fetch.py, search.py; commands.py names what access.py,
                       mailboxes.py, opening.py, messages.py, delivery.py and notify.py carry out
        pop3/          server.py, session.py: a POP3 server over messages in memory

To read it in an hour: core/model, core/ports, core/reconcile; engine/sync, engine/carry_out; then one side,
local/maildir or remote/imap/session with its parse; last engine/whole, which ties them together.

Imports point right only, and what a bar divides never sees each other (tests/test_import_rule.py keeps it):

    cli, commands, demo → daemon → control | log → engine → local | remote → config → core

`core` and every `parse.py` import only `core` and those parts of the standard library that do no I/O. A wire library
has one importer: aioimaplib belongs to remote/imap/session.py, aiosmtplib to remote/smtp.py. Only demo/ and the
tests import `testing`.
"""

__version__ = "0.1.0"
