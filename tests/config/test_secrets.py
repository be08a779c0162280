"""Each source of a secret, and what is said when it fails: who, which source, why and what to do."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from maild.config import (
    NoSecret,
    OAuth2,
    Password,
    PasswordCommand,
    PasswordCredential,
    PasswordFile,
    Secret,
    TokenCommand,
)
from maild.core.errors import SecretUnavailable
from maild.remote import auth

SWORDFISH = "swordfish päss"


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_read_so_far", set())


def python(code: str, *arguments: str) -> PasswordCommand:
    return PasswordCommand((sys.executable, "-c", code, *arguments))


def shell(code: str) -> PasswordCommand:
    return PasswordCommand(("sh", "-c", code))


def private(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


async def failure(secret: Secret) -> str:
    """The whole error text, which never shows what was read."""
    with pytest.raises(SecretUnavailable) as caught:
        await auth.read_secret(secret, "work")
    text = str(caught.value)
    assert text.startswith('account "work": ')
    assert caught.value.hint
    assert "swordfish" not in text
    assert "\n" not in text
    assert caught.value.__cause__ is None
    return text


# password


async def test_password_is_itself() -> None:
    assert await auth.read_secret(Password(SWORDFISH), "work") == SWORDFISH


async def test_every_secret_that_was_read_is_kept_out_of_the_log(tmp_path: Path) -> None:
    await auth.read_secret(Password("first"), "work")
    await auth.read_secret(PasswordFile(private(tmp_path / "p", b"the second\n")), "work")
    await auth.read_secret(shell("echo third"), "work")
    assert auth.kept_out_of_log() == ["the second", *sorted(["first", "third"], key=auth.kept_out_of_log().index)]
    auth.keep_out_of_log("")
    assert "" not in auth.kept_out_of_log()


# password_command


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\nsecond line\n", "\n\n"])
async def test_command_gives_its_first_line(end: str) -> None:
    assert await auth.read_secret(python(f"print({SWORDFISH + end!r}, end='')"), "work") == SWORDFISH


async def test_blanks_around_a_password_are_part_of_it() -> None:
    assert await auth.read_secret(python("print('  x\\t ')"), "work") == "  x\t "


async def test_command_gets_its_arguments_as_they_are_and_no_input() -> None:
    code = "import sys; print(sys.argv[1] + sys.stdin.read())"
    assert await auth.read_secret(python(code, "$HOME; `id` 'x'"), "work") == "$HOME; `id` 'x'"


async def test_command_that_prints_a_lot_is_read_to_its_end() -> None:
    code = "import sys; print('pw'); sys.stdout.write('x' * 10**6); sys.stderr.write('y' * 10**6)"
    assert await auth.read_secret(python(code), "work") == "pw"


async def test_command_that_is_not_there() -> None:
    text = await failure(PasswordCommand(("/no/such/program", "swordfish")))
    assert text == (
        "account \"work\": password_command '/no/such/program': cannot be run: No such file or directory; "
        "give the program's full path"
    )


async def test_command_that_fails_tells_its_first_complaint() -> None:
    text = await failure(shell("echo swordfish; echo 'gpg: no key' >&2; echo more >&2; exit 3"))
    assert text == (
        "account \"work\": password_command 'sh': exit status 3: gpg: no key; "
        "run the command in a shell as maild's user to see what is wrong"
    )


async def test_complaint_shows_no_control_characters_and_nothing_that_was_printed() -> None:
    text = await failure(shell(r"echo swordfish; printf 'bad \033[31m swordfish\n' >&2; exit 1"))
    assert "exit status 1: bad  [31m ***;" in text


async def test_long_complaint_is_cut() -> None:
    assert len(await failure(python("import sys; sys.exit('x' * 5000)"))) < 500


async def test_command_ended_by_a_signal() -> None:
    assert "ended by signal 9;" in await failure(shell("kill -9 $$"))


@pytest.mark.parametrize("output", ["", "\\n", "\\nswordfish\\n"])
async def test_command_whose_first_line_is_empty(output: str) -> None:
    assert "its first line is empty" in await failure(shell(f"printf '{output}'"))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"swordfish\0", "its first line cannot be a password"),
        (b"sword\rfish", "its first line cannot be a password"),
        (b"swordfish" * 10000, "its first line cannot be a password"),
        (b"swordfish\xff", "its first line is not UTF-8 text"),
    ],
)
async def test_output_that_cannot_be_a_password(tmp_path: Path, raw: bytes, reason: str) -> None:
    path = private(tmp_path / "p", raw)
    assert reason in await failure(PasswordCommand(("cat", str(path))))
    assert reason in await failure(PasswordFile(path))


@pytest.fixture
def group_of(tmp_path: Path) -> Iterator[Path]:
    """A FIFO: it is at its end only when every process of a command that holds it open is gone."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    yield path
    path.unlink()


def hanging(fifo: Path) -> PasswordCommand:
    """A shell with a child; both hold the FIFO open and neither ends by itself."""
    return shell(f"exec 9>{fifo}; echo swordfish; echo ready >&9; tail -f /dev/null & wait")


async def test_command_without_an_answer_is_killed_with_its_children(
    group_of: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "COMMAND_TIMEOUT_S", 2.0)
    async with anyio.create_task_group() as tasks:
        seen: list[bytes] = []

        async def watch() -> None:
            async with await anyio.open_file(group_of, "rb") as fifo:
                seen.append(await fifo.read())

        tasks.start_soon(watch)
        with anyio.fail_after(20):
            assert "no answer within 2 s; run the command" in await failure(hanging(group_of))
    assert seen == [b"ready\n"]


async def test_cancelled_command_is_killed_with_its_children(group_of: Path) -> None:
    reading = anyio.CancelScope()

    async def read() -> None:
        with reading:
            await auth.read_secret(hanging(group_of), "work")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            async with await anyio.open_file(group_of, "rb") as fifo:
                assert await fifo.readline() == b"ready\n"
                reading.cancel()
                assert await fifo.read() == b""
    assert auth.kept_out_of_log() == []


async def test_command_cut_off_while_it_starts_is_reaped_once(caplog: pytest.LogCaptureFixture) -> None:
    """As when a server is left before it asked: what asyncio closes itself, its own watcher misses with a warning."""
    for steps in range(30):
        with anyio.CancelScope() as reading:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(auth.read_secret, shell("exit 3" if steps % 2 else "echo secret"), "work")
                for _ in range(steps % 6):
                    await anyio.lowlevel.checkpoint()
                reading.cancel()
    with anyio.fail_after(10):
        while any(thread.name.startswith(("asyncio-waitpid", "waitpid")) for thread in threading.enumerate()):
            await anyio.lowlevel.checkpoint()
    assert "Unknown child process" not in caplog.text


async def test_agent_that_keeps_the_pipes_open_is_not_waited_for(tmp_path: Path) -> None:
    """gpg-agent and ssh masters do this; they live on."""
    pid_file = tmp_path / "pid"
    with anyio.fail_after(20):
        secret = await auth.read_secret(shell(f"tail -f /dev/null & echo $! > {pid_file}; echo swordfish"), "work")
    assert secret == "swordfish"
    os.kill(int(pid_file.read_text()), signal.SIGKILL)  # raises if it was killed


# password_file


@pytest.mark.parametrize("content", [b"swordfish", b"swordfish\n", b"swordfish\r\n", b"swordfish\nsecond\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
async def test_file_gives_its_first_line(tmp_path: Path, content: bytes, mode: int) -> None:
    assert await auth.read_secret(PasswordFile(private(tmp_path / "p", content, mode)), "work") == "swordfish"


async def test_file_may_be_a_link(tmp_path: Path) -> None:
    private(tmp_path / "p", b"swordfish\n")
    (tmp_path / "link").symlink_to("p")
    assert await auth.read_secret(PasswordFile(tmp_path / "link"), "work") == "swordfish"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
async def test_file_that_others_have_access_to_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "p", b"swordfish\n", mode)
    assert await failure(PasswordFile(path)) == (
        f'account "work": password_file {path}: others have access to it (mode {mode:04o}); run chmod 600 {path}'
    )


async def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert await failure(PasswordFile(tmp_path / "p")) == (
        f'account "work": password_file {tmp_path}/p: cannot be read: No such file or directory; '
        "create it with mode 0600"
    )


async def test_file_behind_something_that_is_no_directory(tmp_path: Path) -> None:
    private(tmp_path / "p", b"x")
    assert re.search("cannot be read: Not a directory; see to it", await failure(PasswordFile(tmp_path / "p/q")))


async def test_file_must_be_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with anyio.fail_after(20):
        assert "is not a regular file" in await failure(PasswordFile(tmp_path / "fifo"))
    assert "cannot be read: Is a directory" in await failure(PasswordFile(tmp_path))


async def test_empty_file(tmp_path: Path) -> None:
    assert "its first line is empty; write the password" in await failure(PasswordFile(private(tmp_path / "p", b"")))


# password_credential


async def test_credential_is_a_file_of_the_directory_that_systemd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private(tmp_path / "work", b"swordfish\n", 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert await auth.read_secret(PasswordCredential("work"), "work") == "swordfish"


async def test_credential_that_was_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert await failure(PasswordCredential("imap")) == (
        "account \"work\": password_credential 'imap': cannot be read: No such file or directory; "
        "add LoadCredential=imap:FILE to maild's unit"
    )


async def test_credential_outside_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert await failure(PasswordCredential("imap")) == (
        "account \"work\": password_credential 'imap': $CREDENTIALS_DIRECTORY is not set; "
        "run maild under systemd with LoadCredential=imap:FILE, or use password_file"
    )


# the others; tokens and the keyring have tests of their own in tests/remote


async def test_token_command_prints_a_token() -> None:
    assert await auth.read_secret(TokenCommand(("echo", "swordfish")), "work") == "swordfish"
    assert auth.kept_out_of_log() == ["swordfish"]


async def test_token_command_that_fails() -> None:
    text = await failure(TokenCommand(("sh", "-c", "echo swordfish; exit 3")))
    assert text.startswith("account \"work\": token_command 'sh': exit status 3;")


async def test_oauth_without_a_login(tmp_path: Path) -> None:
    secret = OAuth2("google", "1", owner="work", token_file=tmp_path / "tokens/work.json")
    assert await failure(secret) == 'account "work": nobody has logged in yet; run maild login work'


async def test_a_certificate_needs_no_secret() -> None:
    assert await auth.read_secret(NoSecret(), "work") == ""
    assert auth.kept_out_of_log() == []
