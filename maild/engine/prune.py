"""What of a maildrop is deleted on the server, and the proof for each that it may be.

A deletion is due by `leave_on_server`, or because the user removed the local file (`delete_with_local`). The second
kind goes past the deletion guard, and only after the file was looked for in all mailboxes of the account, twice.
"""

from __future__ import annotations

import structlog

from maild.core.errors import PlanRefused
from maild.core.guard import is_too_many
from maild.core.maildrop import HOLD_S, Deletions, due, is_same_size
from maild.core.model import Key, Uid
from maild.engine.retrieve import Visit
from maild.local.elsewhere import Content, find_elsewhere
from maild.remote.pop3.remote import Maildrop

HOLD_UNTIL = "pop3_hold_until"  # seconds since 1970 UTC: until then nothing is deleted on the server

log = structlog.get_logger()


async def prune(visit: Visit, drop: Maildrop, *, is_renumbered: bool) -> None:
    """Delete on the server what is due there. Ends the session where it deletes something."""
    if visit.policy.leave is True and not visit.policy.delete_with_local:
        await visit.state.run(_allowed, visit, Deletions(), is_renumbered)
        return
    visit.known = await visit.state.run(visit.table.known)
    removed = await visit.state.run(_removed, visit) if visit.policy.delete_with_local else set()
    planned = due(visit.listed, visit.known, removed, visit.policy, visit.now_s)
    allowed = await visit.state.run(_allowed, visit, planned, is_renumbered)
    if not allowed:
        return
    unsized = [visit.listed[uid] for uid in allowed if visit.listed[uid] not in visit.sizes]
    visit.sizes.update(await drop.sizes(unsized) if unsized else {})
    proven = [uid for uid in allowed if _is_what_it_was(visit, uid)]
    if visit.dry_run:
        visit.box.deleted_there = len(proven)
    elif proven:
        await _delete(visit, drop, proven)


async def _delete(visit: Visit, drop: Maildrop, uids: list[Uid]) -> None:
    """Written down first, then asked for, then confirmed."""
    numbers = {visit.listed[uid]: uid for uid in uids}
    await visit.state.run(visit.table.ask_deletion, uids, visit.now_s)
    deleted = await drop.delete(list(numbers))
    agreed = [uid for number, uid in numbers.items() if number in deleted]
    if len(agreed) < len(uids):
        await visit.state.run(visit.table.withdraw_deletion, set(uids).difference(agreed))
    if await drop.quit():
        await visit.state.run(visit.table.confirm_deletion, agreed)
        visit.box.deleted_there = len(agreed)
        for uid in agreed:
            visit.listed.pop(uid)
    else:
        visit.box.error = "the server did not confirm the deletions; the next poll looks which are done"
        log.warning("maildrop.unconfirmed", account=visit.account.name, messages=len(agreed))


def _is_what_it_was(visit: Visit, uid: Uid) -> bool:
    """A unique-id that the server used again for another message deletes nothing."""
    known = visit.known[uid]
    if is_same_size(known.size_octets, visit.sizes.get(visit.listed[uid])):
        return True
    reason = "not deleted on the server: its size there is not the one it was fetched with"
    log.warning("message.skipped", account=visit.account.name, uid=uid, reason=reason)
    return False


def _removed(visit: Visit) -> set[Uid]:
    """The listed messages whose local file the user removed: it is in no mailbox of the account. Blocks."""
    maildir = visit.maildir
    if maildir is None:
        return set()
    elsewhere = visit.table.elsewhere()
    entries = maildir.entries()
    missing: dict[Key, Uid] = {}
    contents: dict[Key, Content | None] = {}
    for uid in visit.listed:
        known = visit.known.get(uid)
        if known is not None and known.key is not None and known.key not in entries:
            key = elsewhere.get(uid, known.key)
            missing[key], contents[key] = uid, known.content
    if not missing:
        return set()
    found = find_elsewhere(visit.account.maildir, contents, entries)
    left = {key: contents[key] for key in missing if key not in found}
    if left:  # what was moved from a mailbox not read yet to one read already is found now
        found |= find_elsewhere(visit.account.maildir, left, {*maildir.entries(), *found.values()})
    if moved := {missing[key]: new for key, new in found.items() if new != key}:
        visit.table.note_elsewhere(moved)
    return {uid for key, uid in missing.items() if key not in found}


def _allowed(visit: Visit, planned: Deletions, is_renumbered: bool) -> list[Uid]:
    """What of the plan may be carried out; the rest is told. Blocks."""
    state, wanted = visit.state.state, len(planned.by_policy) + len(planned.by_user)
    if is_renumbered and not visit.dry_run:
        state.set_meta(HOLD_UNTIL, f"{visit.now_s + HOLD_S:.0f}")
        log.warning("maildrop.renumbered", account=visit.account.name)
    if wanted and _is_held(visit):
        text = "the server gave all messages other unique-ids; for a day nothing is deleted there"
        hint = f"is it still the same server? then maild approve {visit.account.name}/{visit.mailbox.name}"
        _refuse(visit, PlanRefused(text, hint), wanted)
        if not visit.dry_run:
            state.set_refused(visit.mailbox.id, text)
        return []
    try:
        _guard(visit, planned.by_user)
    except PlanRefused as exc:
        _refuse(visit, exc, len(planned.by_user))
        if not visit.dry_run:
            state.refuse(visit.mailbox.id, exc.text, planned.by_user, ())
        return planned.by_policy
    if visit.mailbox.refused is not None and not visit.dry_run:
        state.clear_refusal(visit.mailbox.id)
        if wanted:
            state.set_meta(HOLD_UNTIL, "0")
    return planned.by_policy + planned.by_user


def _is_held(visit: Visit) -> bool:
    """Whether nothing may be deleted yet, because of other unique-ids; the user's word ends that."""
    state = visit.state.state
    standing = state.refusal(visit.mailbox.id)
    if standing is not None and standing.approved and not standing.delete_remote:
        return False
    return visit.now_s < float(state.meta(HOLD_UNTIL) or 0)


def _guard(visit: Visit, removed: list[Uid]) -> None:
    """Refuses to empty the server because this disk is empty (contract 5), unless just that was approved."""
    here = [uid for uid in visit.listed if (known := visit.known.get(uid)) is not None and known.key is not None]
    if not is_too_many(len(removed), len(here), visit.account.max_deletions.of(len(here))):
        return
    refusal = visit.state.state.refusal(visit.mailbox.id)
    if refusal is not None and refusal.approved and refusal.delete_remote.issuperset(removed):
        return
    raise PlanRefused(
        f"mailbox {visit.mailbox.name}: {len(removed)} of {len(here)} messages are gone here; "
        "none of them was deleted on the server",
        f"if that is right, run `maild approve {visit.account.name}/{visit.mailbox.name}`",
    )


def _refuse(visit: Visit, refusal: PlanRefused, count: int) -> None:
    visit.box.refused = count
    visit.box.error = str(refusal)
    log.error("mailbox.refused", account=visit.account.name, mailbox=visit.mailbox.name, reason=refusal.text)
