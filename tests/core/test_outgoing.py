"""What an attempt makes of an item: states, next attempts, doubts, and what is owed to its sender."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from maild.core import outgoing
from maild.core.notices import Occasion, delay_notice, failure_report, status_code
from maild.core.outgoing import Item, Recipient, Reply, State, Verdict

NOW = 1_800_000_000
A, B, C = "a@x.example", "b@x.example", "c@x.example"
OK = Verdict.of(Reply(250, "2.0.0 queued"))
LATER = Verdict.of(Reply(451, "4.3.0 try later"))
GREY = Verdict.of(Reply(450, "4.2.0 greylisted"))
NO = Verdict.of(Reply(550, "5.1.1 nobody"))
LOST = Verdict("deferred", Reply(0, "the connection was lost"))
DOUBT = Verdict("uncertain", Reply(0, "the connection was lost"))


def item(*addresses: str, **changes: Any) -> Item:
    made = Item(
        id="1",
        account="work",
        sender="me@x.example",
        recipients=tuple(Recipient(address) for address in addresses or (A,)),
        size_octets=100,
        created_s=NOW,
        since_s=NOW,
        next_s=NOW,
        message_id="<1@x>",
        subject="hello",
    )
    return replace(made, **changes)


def attempted(before: Item, verdicts: dict[str, Verdict], now_s: int = NOW) -> Item:
    claimed = outgoing.claimed(before, before.due(now_s, everything=True))
    return outgoing.settled(outgoing.body_begun(claimed, {}), verdicts, now_s)


def states(item: Item) -> list[State]:
    return [recipient.state for recipient in item.recipients]


@pytest.mark.parametrize(
    ("verdict", "state", "after_s", "copy"),
    [
        (OK, "sent", 0, "begun"),
        (LATER, "deferred", 60, ""),
        (LOST, "deferred", 60, ""),
        (GREY, "deferred", 300, ""),
        (NO, "failed", 0, ""),
        (DOUBT, "uncertain", 900, ""),
    ],
)
def test_one_recipient(verdict: Verdict, state: State, after_s: int, copy: str) -> None:
    after = attempted(item(), {A: verdict})
    assert (after.state, after.attempts, after.phase, after.copy) == (state, 1, "", copy)
    assert after.recipients[0].reply == str(verdict.reply)
    assert after.is_over == (state in ("sent", "failed"))
    assert after.wakes_at() == (None if after.is_over else NOW + after_s)


def test_each_recipient_has_its_own_state() -> None:
    after = attempted(item(A, B, C), {A: OK, B: LATER, C: NO})
    assert states(after) == ["sent", "deferred", "failed"]
    assert after.state == "deferred"
    assert not after.is_over
    assert after.due(NOW + 59) == ()
    assert after.due(NOW + 60) == (B,)
    again = attempted(after, {B: OK}, NOW + 60)
    assert states(again) == ["sent", "sent", "failed"]
    assert again.is_over


def test_the_longest_patience_asked_for_counts() -> None:
    assert attempted(item(A, B), {A: LATER, B: GREY}).next_s == NOW + 300


def test_given_up_after_five_days_but_not_before_a_try() -> None:
    late = NOW + outgoing.LIFETIME_S
    waiting = replace(attempted(item(), {A: LATER}), next_s=late - 1)
    assert attempted(waiting, {A: LATER}, late - 1).state == "deferred"
    waiting = replace(waiting, next_s=late)
    over = attempted(waiting, {A: LATER}, late)
    assert over.state == "failed"
    assert over.recipients[0].reply == "451 4.3.0 try later (given up after 5 days)"
    assert attempted(waiting, {A: OK}, late).state == "sent"
    assert attempted(waiting, {A: DOUBT}, late).state == "uncertain"


@pytest.mark.parametrize(
    ("verdicts", "after_s"),
    [
        ({A: OK, B: "452 4.5.3 Error: too many recipients"}, 0),
        ({A: OK, B: "452 Too many recipients"}, 0),
        ({A: OK, B: "452 4.2.2 mailbox full"}, 60),
        ({A: OK, B: "452 4.5.3 too many", C: "451 4.3.0 later"}, 60),
        ({A: LATER, B: "452 4.5.3 too many"}, 60),
        ({B: "452 4.5.3 too many"}, 60),
    ],
)
def test_whom_there_was_no_room_for_in_one_transaction_comes_next(
    verdicts: dict[str, Verdict | str], after_s: int
) -> None:
    judged = {a: Verdict.of(Reply(int(v[:3]), v[4:])) if isinstance(v, str) else v for a, v in verdicts.items()}
    assert attempted(item(*judged), judged).next_s == NOW + after_s


def test_time_without_a_connection_is_not_of_the_five_days() -> None:
    away_s = 6 * 86400
    first = attempted(item(), {A: GREY}, NOW + away_s)  # accepted without network, then greylisted
    assert (first.state, first.next_s) == ("deferred", NOW + away_s + 300)
    assert not outgoing.owes_delay_notice(first, NOW + away_s)
    second = attempted(first, {A: LATER}, NOW + 2 * away_s)
    assert second.state == "deferred"
    assert second.since_s == NOW + 2 * away_s - 300
    assert not outgoing.owes_delay_notice(second, NOW + 2 * away_s)


def test_the_time_that_it_was_held_is_not_of_the_five_days() -> None:
    later_s = NOW + 6 * 86400
    assert attempted(outgoing.released(outgoing.held(item()), later_s), {A: GREY}, later_s).state == "deferred"


def test_what_never_gets_an_answer_is_sent_ever_more_seldom_and_given_up() -> None:
    found = attempted(item(), {A: DOUBT})
    waits_s = [900]
    while len(waits_s) < 50 and (at_s := found.wakes_at()) is not None:
        found = attempted(found, {A: DOUBT}, at_s)
        waits_s.append(found.uncertain_s - at_s)
    assert waits_s[:6] == [900, 900, 900, 900, 960, 1920]
    assert max(waits_s) == 4 * 3600
    assert found.state == "failed"
    assert found.recipients[0].reply.endswith(" (given up after 5 days; it may have arrived)")


def test_the_first_doubt_is_looked_into_before_it_is_given_up() -> None:
    late = NOW + outgoing.LIFETIME_S
    waiting = replace(attempted(item(), {A: LATER}), attempts=30, next_s=late)
    doubtful = attempted(waiting, {A: DOUBT}, late)
    assert (doubtful.state, doubtful.uncertain_s) == ("uncertain", late + 900)
    over = attempted(doubtful, {A: LATER}, late + 900)
    assert over.recipients[0].reply == "451 4.3.0 try later (given up after 5 days; it may have arrived)"


def test_a_clock_that_was_wrong_keeps_no_message_waiting() -> None:
    year_s = 365 * 86400
    ahead = replace(item(), created_s=NOW + year_s, since_s=NOW + year_s, next_s=NOW + year_s + 10)
    assert ahead.due(NOW) == (A,)
    deferred = attempted(ahead, {A: LATER}, NOW + year_s + 10)
    assert deferred.due(NOW) == (A,)
    assert attempted(deferred, {A: LATER}, NOW).since_s == NOW
    assert attempted(ahead, {A: DOUBT}, NOW + year_s + 10).due(NOW) == (A,)
    assert replace(item(), next_s=NOW + year_s).due(NOW) == ()  # as `--at` had it
    assert ahead.due(NOW + year_s) == ()


def test_whoever_was_not_tried_is_as_before() -> None:
    claimed = outgoing.claimed(item(A, B), [A, B])
    after = outgoing.settled(claimed, {A: NO}, NOW)
    assert states(after) == ["failed", "queued"]
    assert not any(recipient.is_in_flight for recipient in after.recipients)
    assert outgoing.unclaimed(claimed) == item(A, B)


def test_a_crash_before_the_body_leaves_no_doubt() -> None:
    before = item(A, B)
    assert outgoing.interrupted(outgoing.claimed(before, [A, B]), NOW) == before


def test_a_crash_in_the_body_leaves_doubt_about_whom_it_was_for() -> None:
    begun = outgoing.body_begun(outgoing.claimed(item(A, B, C), [A, B]), {B: NO})
    after = outgoing.interrupted(begun, NOW)
    assert states(after) == ["uncertain", "failed", "queued"]
    assert after.attempts == 1
    assert after.due(NOW) == (C,)
    assert set(after.due(NOW + 900)) == {A, C}


def test_doubt_ends_by_proof_or_by_another_try() -> None:
    doubtful = attempted(item(A, B), {A: DOUBT, B: NO})
    found = outgoing.found_in_sent(doubtful, NOW + 1)
    assert states(found) == ["sent", "failed"]
    assert found.copy == "begun"
    assert doubtful.due(NOW + 899, everything=True) == ()
    assert doubtful.due(NOW + 900) == (A,)
    assert states(attempted(doubtful, {A: OK}, NOW + 900)) == ["sent", "failed"]


@pytest.mark.parametrize(
    ("attempts", "is_mixed"),
    [
        ([{A: DOUBT, B: DOUBT}], False),
        ([{A: LATER, B: LATER}, {A: DOUBT, B: DOUBT}], False),
        ([{A: DOUBT, B: DOUBT}, {A: DOUBT, B: DOUBT}], False),
        ([{A: DOUBT, B: DOUBT}, {A: DOUBT, B: NO}], False),
        ([{A: DOUBT, B: LATER}, {B: DOUBT}], True),
        ([{A: DOUBT, B: LATER}, {A: DOUBT, B: DOUBT}], True),
        ([{A: DOUBT, B: DOUBT}, {A: DOUBT}], True),
        ([{A: DOUBT, B: LATER}, {B: DOUBT}, {A: DOUBT, B: DOUBT}], True),
        ([{A: DOUBT, B: LATER}, {B: DOUBT}, {A: OK, B: OK}], False),
    ],
)
def test_one_copy_proves_only_what_all_transactions_in_doubt_were_for(
    attempts: list[dict[str, Verdict]], is_mixed: bool
) -> None:
    found = item(A, B)
    for verdicts in attempts:
        found = outgoing.settled(outgoing.body_begun(outgoing.claimed(found, list(verdicts)), {}), verdicts, NOW)
    assert found.is_doubt_mixed == is_mixed


def test_a_retry_by_hand_forgets_whom_the_first_doubt_was_about() -> None:
    found = outgoing.retried(attempted(item(A, B), {A: DOUBT, B: LATER}), NOW)
    assert attempted(found, {A: DOUBT, B: DOUBT}).is_doubt_mixed
    assert not attempted(found, {A: OK, B: LATER}).is_doubt_mixed


def test_hold_and_release() -> None:
    held = outgoing.held(attempted(item(A, B, C), {A: OK, B: LATER, C: DOUBT}))
    assert states(held) == ["sent", "held", "uncertain"]
    assert held.due(NOW + 100, everything=True) == ()
    assert states(outgoing.released(held, NOW + 7)) == ["sent", "queued", "uncertain"]
    assert outgoing.released(held, NOW + 7).due(NOW + 7) == (B,)
    later = attempted(item(A), {A: LATER})
    assert outgoing.released(later, NOW + 7) == later


def test_retry_tries_everyone_who_has_not_got_it() -> None:
    over = attempted(item(A, B, C), {A: OK, B: NO, C: DOUBT})
    again = outgoing.retried(over, NOW + 5)
    assert states(again) == ["sent", "queued", "queued"]
    assert (again.since_s, again.due(NOW + 5)) == (NOW + 5, (B, C))


def test_what_is_owed() -> None:
    failed = attempted(item(A, B), {A: NO, B: LATER})
    assert [r.address for r in outgoing.owes_report(failed)] == [A]
    told = replace(failed, recipients=tuple(replace(r, is_reported=r.state == "failed") for r in failed.recipients))
    assert outgoing.owes_report(told) == ()
    assert not outgoing.owes_delay_notice(failed, NOW + outgoing.DELAY_NOTICE_S - 1)
    assert outgoing.owes_delay_notice(failed, NOW + outgoing.DELAY_NOTICE_S)
    assert not outgoing.owes_delay_notice(replace(failed, is_delay_told=True), NOW + outgoing.DELAY_NOTICE_S)
    assert not outgoing.owes_delay_notice(attempted(item(), {A: OK}), NOW + outgoing.DELAY_NOTICE_S)


# -- reports

OCCASION = Occasion(
    date="Wed, 25 Nov 2026 01:00:00 +0000",
    arrived="Tue, 24 Nov 2026 01:00:00 +0000",
    host="here.example",
    remote="smtp.example.org",
    boundary="maild-1",
    original_head=b"Subject: hello\nTo: a@x.example\n",
)


def test_a_report_is_readable_by_machines() -> None:
    from email import message_from_bytes, policy

    after = attempted(item(A, B, subject="héllo\r\nX: y"), {A: NO, B: LATER})
    raw = failure_report(after, outgoing.owes_report(after), "me@x.example", OCCASION)
    report = message_from_bytes(raw, policy=policy.default)
    assert not report.defects
    assert report.get_content_type() == "multipart/report"
    assert report["content-type"].params["report-type"] == "delivery-status"
    assert report["subject"] == "Undelivered: héllo  X: y"
    assert (report["x"], report["in-reply-to"]) == (None, "<1@x>")
    text, status, head = report.iter_parts()
    assert "a@x.example" in text.get_content()
    assert "550 5.1.1 nobody" in text.get_content()
    assert "maild outbox retry 1" in text.get_content()
    about, recipient = status.get_payload()
    assert about["reporting-mta"] == "dns; here.example"
    assert recipient["final-recipient"] == f"rfc822; {A}"
    assert (recipient["action"], recipient["status"]) == ("failed", "5.1.1")
    assert recipient["diagnostic-code"] == "smtp; 550 5.1.1 nobody"
    assert head.get_content_type() == "text/rfc822-headers"


def test_a_delay_notice_says_that_it_goes_on() -> None:
    from email import message_from_bytes, policy

    late = attempted(item(A), {A: LATER})
    notice = message_from_bytes(delay_notice(late, "me@x.example", OCCASION), policy=policy.default)
    _, status, _ = notice.iter_parts()
    assert status.get_payload()[1]["action"] == "delayed"
    assert status.get_payload()[1]["status"] == "4.3.0"
    assert "goes on\ntrying" in next(notice.iter_parts()).get_content()


@pytest.mark.parametrize(
    ("reply", "is_final", "expected"),
    [
        ("550 5.7.1 no", True, "5.7.1"),
        ("550 no", True, "5.0.0"),
        ("451 4.3.0 x (given up after 5 days)", True, "5.0.0"),
        ("451 4.3.0 x", False, "4.3.0"),
        ("the connection was lost", False, "4.0.0"),
        ("", False, "4.0.0"),
    ],
)
def test_status_codes(reply: str, is_final: bool, expected: str) -> None:
    assert status_code(reply, is_final=is_final) == expected
