"""The proxy keeps its promises: delay within tolerance, faults when ordered, counts that are right."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.proxy import DelayProxy, FaultProxy
from tests.servers.relay import HOST

GREETING = b"* OK ready\r\n"
RTT_S = 0.04
LATE_S = 0.03  # what a busy machine may add


class EchoServer:
    """Greets, then sends back every chunk it reads; notes what it read and how connections ended."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.read = bytearray()
        self.ends: list[str] = []
        self.ended = threading.Semaphore(0)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(GREETING)
                while chunk := connection.recv(65536):
                    self.read += chunk
                    connection.sendall(chunk)
                self.ends.append("fin")
            except ConnectionError:
                self.ends.append("reset")
        self.ended.release()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    server = EchoServer()
    yield server
    server.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection((HOST, port), timeout=10)


def read_exactly(connection: socket.socket, octets: int) -> bytes:
    data = b""
    while len(data) < octets and (chunk := connection.recv(octets - len(data))):
        data += chunk
    return data


def ask(connection: socket.socket, text: bytes = b"ping") -> bytes:
    connection.sendall(text)
    return read_exactly(connection, len(text))


def test_greeting_takes_two_round_trips_and_an_answer_one(echo: EchoServer) -> None:
    greetings, answers = [], []
    with DelayProxy(echo.port, rtt_s=RTT_S) as proxy:
        for _ in range(5):
            began = time.monotonic()
            with connect(proxy.port) as connection:
                assert read_exactly(connection, len(GREETING)) == GREETING
                greetings.append(time.monotonic() - began)
                began = time.monotonic()
                assert ask(connection) == b"ping"
                answers.append(time.monotonic() - began)
    assert 2 * RTT_S <= min(greetings) <= 2 * RTT_S + LATE_S
    assert RTT_S <= min(answers) <= RTT_S + LATE_S


def test_what_is_sent_before_the_greeting_waits_for_the_handshake(echo: EchoServer) -> None:
    with DelayProxy(echo.port, rtt_s=RTT_S) as proxy, connect(proxy.port) as connection:
        began = time.monotonic()
        connection.sendall(b"early")
        assert read_exactly(connection, len(GREETING) + 5) == GREETING + b"early"
        assert time.monotonic() - began >= 2 * RTT_S


def test_pipelined_requests_share_one_round_trip(echo: EchoServer) -> None:
    requests = 50
    with DelayProxy(echo.port, rtt_s=RTT_S) as proxy, connect(proxy.port) as connection:
        read_exactly(connection, len(GREETING))
        began = time.monotonic()
        for _ in range(requests):
            connection.sendall(b"ping")
        assert read_exactly(connection, requests * 4) == b"ping" * requests
        assert time.monotonic() - began < 5 * RTT_S


def test_more_than_the_window_passes_whole(echo: EchoServer) -> None:
    sent = bytes(range(256)) * (10 << 12)  # 10 MiB
    with DelayProxy(echo.port, rtt_s=RTT_S) as proxy, connect(proxy.port) as connection:
        read_exactly(connection, len(GREETING))
        writer = threading.Thread(target=connection.sendall, args=[sent])
        writer.start()
        received = bytearray()
        while len(received) < len(sent):
            received += connection.recv(1 << 20)
        writer.join()
        assert received == sent
        stats = proxy.finish()
    assert (stats.octets_to_server, stats.octets_to_client) == (len(sent), len(sent) + len(GREETING))


def test_turns_and_sightings_count_round_trips(echo: EchoServer) -> None:
    with DelayProxy(echo.port, rtt_s=RTT_S, watch=["FETCH", "NEVER"]) as proxy:
        with connect(proxy.port) as connection:
            read_exactly(connection, len(GREETING))
            for text in (b"LOGIN", b"SELECT", b"UID FETCH 1", b"LOGOUT"):
                assert ask(connection, text) == text
        stats = proxy.finish()
    assert (stats.connections, stats.turns_to_server, stats.turns_to_client) == (1, 4, 4)
    assert list(stats.sightings) == ["FETCH"]
    assert stats.sightings["FETCH"].turns == 3
    assert 4 * RTT_S <= stats.sightings["FETCH"].elapsed_s <= 4 * RTT_S + 3 * LATE_S


def test_watched_text_is_seen_across_two_packets(echo: EchoServer) -> None:
    with DelayProxy(echo.port, rtt_s=0.0, watch=["UID FETCH"]) as proxy:
        with connect(proxy.port) as connection:
            read_exactly(connection, len(GREETING))
            assert ask(connection, b"a1 UID F") == b"a1 UID F"
            assert ask(connection, b"ETCH 1") == b"ETCH 1"
        stats = proxy.finish()
    assert stats.sightings["UID FETCH"].turns == 2


def test_end_of_stdin_ends_the_process(echo: EchoServer) -> None:
    command = [sys.executable, "-m", "tests.servers.proxy", "--target", str(echo.port)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        said, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert json.loads(said)["connections"] == 0


def test_nobody_behind_the_proxy_resets_the_client() -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    with FaultProxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy.port) as connection:
        connection.recv(1)


def test_cut_after_lets_exactly_so_many_octets_through_once(echo: EchoServer) -> None:
    with FaultProxy(echo.port) as proxy:
        proxy.cut_after(len(GREETING) + 3)
        with connect(proxy.port) as connection:
            connection.sendall(b"abcdef")
            assert read_exactly(connection, 100) == GREETING + b"abc"
        with connect(proxy.port) as connection:
            connection.sendall(b"abcdef")
            assert read_exactly(connection, len(GREETING) + 6) == GREETING + b"abcdef"


def test_cut_after_toward_the_server(echo: EchoServer) -> None:
    with FaultProxy(echo.port, record=True) as proxy:
        proxy.cut_after(2, toward="server", reset=True)
        with connect(proxy.port) as connection:
            assert read_exactly(connection, len(GREETING)) == GREETING
            connection.sendall(b"abcdef")
            assert echo.ended.acquire(timeout=10)
        assert echo.read == b"ab"
        assert proxy.recorded("server") == b"abcdef"
        assert proxy.recorded("client").startswith(GREETING)


@pytest.mark.parametrize("reset", [True, False])
def test_cut_tells_both_sides(echo: EchoServer, reset: bool) -> None:
    with FaultProxy(echo.port) as proxy, connect(proxy.port) as connection:
        assert read_exactly(connection, len(GREETING)) == GREETING
        proxy.cut(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        else:
            assert connection.recv(1) == b""
        proxy.wait_for(lambda proxy: proxy.open_connections() == 0)
        assert echo.ended.acquire(timeout=10)
    assert echo.ends == ["reset" if reset else "fin"]


def test_blackhole_is_silent_and_later_connections_work_after_resume(echo: EchoServer) -> None:
    with FaultProxy(echo.port) as proxy, connect(proxy.port) as old:
        assert read_exactly(old, len(GREETING)) == GREETING
        proxy.blackhole()
        with connect(proxy.port) as during:
            old.sendall(b"lost")
            proxy.wait_for(lambda proxy: proxy.stats().octets_to_server == 4)
            proxy.wait_for(lambda proxy: proxy.stats().octets_to_client == 2 * len(GREETING))
            proxy.resume()
            with connect(proxy.port) as new:
                assert read_exactly(new, len(GREETING)) == GREETING
            for silent in (old, during):
                silent.setblocking(False)
                with pytest.raises(BlockingIOError):
                    silent.recv(1)
    assert echo.read == b""


def test_stall_holds_back_and_resume_delivers(echo: EchoServer) -> None:
    with FaultProxy(echo.port) as proxy, connect(proxy.port) as connection:
        assert read_exactly(connection, len(GREETING)) == GREETING
        proxy.stall()
        connection.sendall(b"held")
        proxy.wait_for(lambda proxy: proxy.stats().octets_to_server == 4)
        assert echo.read == b""
        proxy.resume()
        assert read_exactly(connection, 4) == b"held"


def test_wait_for_says_what_did_not_happen(echo: EchoServer) -> None:
    with FaultProxy(echo.port) as proxy, pytest.raises(TimeoutError, match="connections=0"):
        proxy.wait_for(lambda proxy: proxy.stats().connections == 1, timeout_s=0.05)


def test_nothing_is_recorded_unasked(echo: EchoServer) -> None:
    with FaultProxy(echo.port) as proxy, pytest.raises(ValueError, match="does not record"):
        proxy.recorded("client")
