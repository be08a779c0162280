"""The end of one mailbox's pass: wait until all is durable, then note where we are."""

from __future__ import annotations

import os
import time

import anyio

from maild.core.model import (
    Forget,
    Key,
    Pair,
    Skipped,
)
from maild.engine.adopt import kept_uid
from maild.engine.sync import MailboxPass, too_big
from maild.local.state import Changes

NOT_DELIVERED = "the server did not deliver it"


async def finish(this: MailboxPass) -> None:
    """Wait until all is durable, then move the cursor, unless something has to be seen again."""
    try:
        if this.delivery is not None:
            await this.delivery.settled()
        if not this.work.dry_run:
            await this.work.state.run(_conclude, this)
        this.report.state = "refused" if this.refusal else "error" if this.report.error else "ok"
    finally:
        with anyio.CancelScope(shield=True):
            await this.close()


def _conclude(this: MailboxPass) -> None:
    state, mailbox, scan = this.work.state.state, this.mailbox, this.found
    _note_missing(this)
    undecided = this.unpaired.unsure.keys() | this.unpaired.unreadable.keys()
    # Also of a pass that is refused, for as long as a note stands an equal message is in doubt (`proof.sole`).
    unsure = {key for key, orphan in state.orphans(mailbox.id).items() if orphan.only == "unsure"}
    state.drop_orphans(mailbox.id, unsure - undecided)
    if this.refusal is not None:
        return
    if not scan.complete:
        this.report.error = "the server listed only a part of it; nothing was taken for deleted, the rest comes later"
        state.set_error(mailbox.id, this.report.error)
        this.log.warning("mailbox.failed", error=this.report.error)
        return
    forget = [o.uid for o in this.operations if isinstance(o, Forget)]
    if forget and not this.work.failed:  # else it may have moved to where nobody could look
        state.apply([Changes(mailbox.id, drop=forget)])
    state.clear_refusal(mailbox.id)
    if kept := this.unpaired.kept_here:
        pairs = [Pair(kept_uid(o.key), o.key, o.flags, o.size_octets, o.digest, "local") for o in kept.values()]
        state.apply([Changes(mailbox.id, add=pairs)])
    needed = _still_kept_there(this) | undecided | _still_untold(this)
    state.drop_orphans(mailbox.id, state.orphans(mailbox.id).keys() - needed)
    messages = scan.messages + this.work.remote_delta[mailbox.id]
    untold = sum(note.is_taken for note in state.orphans(mailbox.id).values())
    is_counted = state.count_there(mailbox.id) + len(state.skipped(mailbox.id)) == messages
    is_unsure = any(was.mailbox_id == mailbox.id for some in this.work.unsure.values() for was in some.values())
    is_right = is_counted and not this.is_missed and not is_unsure
    is_undone = this.is_undone or is_unsure or bool(this.awaited)
    state.finish(
        mailbox.id,
        scan.cursor if is_right else None,  # something was missed, whoever's fault it is: compare everything
        scan.mark if is_right else None,
        messages + untold,
        time.time(),
        stamp=None if is_undone else this.look.stamp,
        undone=is_undone,
        object_id=this.listed.object_id,
        identity=_identity(this) or mailbox.identity,
        next_uid=this.listed.next_uid,
        matched=not this.look.has_news,
    )
    if this.report.error:
        state.set_error(mailbox.id, this.report.error)


def _still_kept_there(this: MailboxPass) -> set[Key]:
    """Messages whose deletion here did not travel, and that may be among those that have not come yet."""
    if not this.work.state.state.skipped(this.mailbox.id):
        return set()
    return {key for key, orphan in this.unpaired.orphans.items() if orphan.only == "remote"}


def _still_untold(this: MailboxPass) -> set[Key]:
    """What the server got in this pass and told no Uid of, and what waits for another pass, or another mailbox's."""
    return this.untold | {key for mailbox_id, key in this.work.sent if mailbox_id == this.mailbox.id}


def _identity(this: MailboxPass) -> str:
    maildir = this.opened(make=False)
    if maildir is None:
        return ""
    status = os.fstat(maildir.directory.cur)
    return f"{status.st_dev}:{status.st_ino}"


def _note_missing(this: MailboxPass) -> None:
    """What was asked for and did not come is gone, or the server cannot deliver it: asked for again next time."""
    state, mailbox = this.work.state.state, this.mailbox
    doomed = set(this.pull.doomed) if this.pull is not None else set()
    have = state.uids(mailbox.id) | doomed if this.pulled < len(this.remote.fresh) else None
    if have is not None:
        missing = [(uid, size) for uid, _, size in this.remote.fresh if uid not in have]
        skipped = [
            too_big(uid, size) if uid in this.compared else Skipped(uid, NOT_DELIVERED, size) for uid, size in missing
        ]
        state.skip(mailbox.id, skipped)
        for message in skipped:
            this.log.warning("message.skipped", uid=message.uid, reason=message.reason)
    if left := state.skipped(mailbox.id):
        settled = set(state.pairs_of(mailbox.id, list(left)))
        past = settled | this.gone_among(set(left)) | doomed
        state.unskip(mailbox.id, past)
        this.report.skipped = len(left.keys() - past)
