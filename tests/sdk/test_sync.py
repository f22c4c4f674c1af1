"""The published Python SDK, unmodified, synchronous client."""

import pytest
import stacyvm
from conftest import API_KEY, free_port
from stacyvm import Client, ProviderError, SandboxNotFound, StacyVMError


def test_spawn_answers_a_running_sandbox(client, server):
    with client.spawn(image=server.image, memory_mb=256, vcpus=1, ttl="5m", metadata={"k": "v"}) as sandbox:
        assert sandbox.id.startswith("sb-")
        assert sandbox.state == "running"
        assert sandbox.provider == server.provider
        assert sandbox.image == server.image
        assert sandbox.get_preview_url(3000) == f"http://3000-{sandbox.id}.localhost"
        listed = {info.id: info for info in client.list()}[sandbox.id]
        assert (listed.memory_mb, listed.vcpus, listed.metadata) == (256, 1, {"k": "v"})
        assert client.get(sandbox.id).state == "running"
        spawned_id = sandbox.id
    with pytest.raises(SandboxNotFound):
        client.get(spawned_id)


def test_exec(sandbox):
    assert sandbox.exec("echo hello").stdout == "hello\n"
    result = sandbox.exec("echo oops >&2; exit 42")
    assert (result.exit_code, result.stdout, result.stderr) == (42, "", "oops\n")
    assert sandbox.exec("echo", args=["a b", "c'd"]).stdout == "a b c'd\n"
    assert sandbox.exec("/bin/echo", args=["$HOME", "*"], mode="argv").stdout == "$HOME *\n"
    assert sandbox.exec("echo $GREETING", env={"GREETING": "hi there"}).stdout == "hi there\n"
    assert sandbox.exec("pwd", workdir="/tmp").stdout.rstrip().endswith("/tmp")
    assert sandbox.exec("pwd").stdout.rstrip().endswith("/workspace")
    assert sandbox.exec("printf 'grüße €'").stdout == "grüße €"


def test_exec_timeout_is_an_error_and_kills(sandbox):
    with pytest.raises(StacyVMError) as caught:
        sandbox.exec("sleep 30", timeout="300ms")
    assert caught.value.code == "TIMEOUT"
    assert sandbox.exec("echo still here").stdout == "still here\n"


def test_exec_stream(sandbox):
    chunks = list(sandbox.exec_stream("for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.02; done"))
    by_stream = {name: "".join(c.data for c in chunks if c.stream == name) for name in ("stdout", "stderr")}
    assert by_stream == {"stdout": "out 1\nout 2\nout 3\n", "stderr": "err 1\nerr 2\nerr 3\n"}
    assert {c.stream for c in chunks} == {"stdout", "stderr"}, "no record of another kind by default"


def test_exec_stream_of_a_silent_command_outlasts_the_timeout_of_the_client(server, sandbox):
    # The server fills silence with empty lines, which this client passes over.
    with Client(server.url, api_key=API_KEY, timeout=2.0) as impatient:
        chunks = list(impatient.get(sandbox.id).exec_stream("sleep 5; echo late"))
    assert [(c.stream, c.data) for c in chunks] == [("stdout", "late\n")]


def test_exec_stream_never_splits_a_character(sandbox):
    text = "".join(c.data for c in sandbox.exec_stream("i=0; while [ $i -lt 5000 ]; do printf 'ä€😀'; i=$((i+1)); done"))
    assert text == "ä€😀" * 5000


def test_every_file_method(sandbox):
    sandbox.write_file("/workspace/deep/er/a.log", "first\n")
    sandbox.write_file("/workspace/deep/b.log", "sécond\n", mode="0600")
    assert sandbox.read_file("/workspace/deep/b.log") == "sécond\n"
    assert sorted(e["path"] for e in sandbox.list_files("/workspace/deep")) == [
        "/workspace/deep/b.log",
        "/workspace/deep/er",
    ]
    stat = sandbox.stat_file("/workspace/deep/b.log")
    assert (stat["size"], stat["is_dir"], stat["mode"].lstrip("0")) == (8, False, "600")
    assert sandbox.stat_file("/workspace/deep")["is_dir"] is True
    assert sandbox.exec("cat deep/er/a.log").stdout == "first\n"
    sandbox.move_file("/workspace/deep/er/a.log", "/workspace/elsewhere/a.log")
    sandbox.chmod_file("/workspace/elsewhere/a.log", "0755")
    assert sandbox.stat_file("/workspace/elsewhere/a.log")["mode"].lstrip("0") == "755"
    assert sorted(sandbox.glob_files("/workspace/**/*.log")) == [
        "/workspace/deep/b.log",
        "/workspace/elsewhere/a.log",
    ]
    assert sandbox.glob_files("/workspace/*.nothing") == []
    sandbox.delete_file("/workspace/deep", recursive=True)
    with pytest.raises(StacyVMError):
        sandbox.read_file("/workspace/deep/b.log")
    sandbox.delete_file("/workspace/elsewhere/a.log")
    with pytest.raises(StacyVMError):
        sandbox.stat_file("/workspace/elsewhere/a.log")


def test_ttl(sandbox, client):
    before = client.get(sandbox.id)._info["expires_at"]
    sandbox.extend_ttl("2h")
    assert sandbox._info["expires_at"] > before
    with pytest.raises(StacyVMError):
        sandbox.extend_ttl("-1s")


def test_destroy_twice_and_refresh(client, server):
    sandbox = client.spawn(image=server.image, ttl="5m")
    sandbox.refresh()
    sandbox.destroy()
    sandbox.destroy()
    with pytest.raises(SandboxNotFound):
        sandbox.exec("true")


def test_errors_have_their_types(client, server):
    with pytest.raises(SandboxNotFound):
        client.get("sb-0000000000000000")
    with pytest.raises(StacyVMError) as bad:
        client.spawn(image=server.image, ttl="yesterday")
    assert bad.value.code == "BAD_REQUEST"
    with pytest.raises(SandboxNotFound):
        client.spawn(image=server.image, provider="no-such-provider")
    with Client(server.url, api_key="wrong") as stranger, pytest.raises(StacyVMError) as refused:
        stranger.list()
    assert refused.value.code == "UNAUTHORIZED"
    with Client(f"http://127.0.0.1:{free_port()}", api_key=API_KEY) as nobody, pytest.raises(stacyvm.ConnectionError):
        nobody.spawn(image=server.image)


def test_an_image_is_never_replaced_by_another(client):
    with pytest.raises((StacyVMError, ProviderError)) as caught:
        client.spawn(image="no-such-image:1.0", provider="native")
    assert "no-such-image" in str(caught.value)


def test_what_the_sdk_reads_about_the_server(client, server):
    assert client.health()["status"] == "ok"
    providers = {p["name"]: p for p in client.providers()}
    assert providers[server.provider]["healthy"] is True
    assert providers[server.provider]["default"] is True
    assert client.pool_status()["enabled"] is False
    assert client.quota_summary().total == 0
    decision = client.admission(image=server.image, ttl="5m")
    assert decision.allowed is True
    assert isinstance(client.prune(), int)
