"""The published Python SDK, unmodified, asynchronous client."""

import asyncio

import pytest
from conftest import API_KEY
from stacyvm import AsyncClient, SandboxNotFound, StacyVMError


def run(server, scenario):
    async def connected():
        async with AsyncClient(server.url, api_key=API_KEY, user_id="sdk-async") as client:
            return await scenario(client)

    return asyncio.run(connected())


def test_life_cycle(server):
    async def scenario(client):
        sandbox = await client.spawn(image=server.image, ttl="5m")
        assert sandbox.state == "running"
        result = await sandbox.exec("echo async; exit 3")
        assert (result.exit_code, result.stdout) == (3, "async\n")
        await sandbox.extend_ttl("1h")
        await sandbox.refresh()
        await sandbox.destroy()
        with pytest.raises(SandboxNotFound):
            await client.get(sandbox.id)

    run(server, scenario)


def test_stream_is_ndjson_to_the_last_line(server):
    async def scenario(client):
        async with await client.spawn(image=server.image, ttl="5m") as sandbox:
            text = ""
            async for chunk in sandbox.exec_stream("seq 1 2000"):
                text += chunk.data
            assert text == "".join(f"{n}\n" for n in range(1, 2001))

    run(server, scenario)


def test_stream_of_a_silent_command_outlasts_the_timeout_of_the_client(server):
    # The server fills silence with empty lines; anything else that is no JSON would raise here.
    async def scenario(client):
        async with await client.spawn(image=server.image, ttl="5m") as sandbox:
            async with AsyncClient(server.url, api_key=API_KEY, timeout=2.0) as impatient:
                same = await impatient.get(sandbox.id)
                chunks = [(c.stream, c.data) async for c in same.exec_stream("sleep 5; echo late")]
            assert chunks == [("stdout", "late\n")]

    run(server, scenario)


def test_files(server):
    async def scenario(client):
        async with await client.spawn(image=server.image, ttl="5m") as sandbox:
            await sandbox.write_file("/workspace/x/y.txt", "text")
            assert await sandbox.read_file("/workspace/x/y.txt") == "text"
            assert [e["path"] for e in await sandbox.list_files("/workspace/x")] == ["/workspace/x/y.txt"]
            await sandbox.move_file("/workspace/x/y.txt", "/workspace/z.txt")
            await sandbox.chmod_file("/workspace/z.txt", "0640")
            assert (await sandbox.stat_file("/workspace/z.txt"))["size"] == 4
            assert await sandbox.glob_files("/workspace/*.txt") == ["/workspace/z.txt"]
            await sandbox.delete_file("/workspace/z.txt")
            with pytest.raises(StacyVMError):
                await sandbox.read_file("/workspace/z.txt")

    run(server, scenario)


def test_twenty_at_once(server):
    async def scenario(client):
        async def one(number):
            async with await client.spawn(image=server.image, ttl="5m") as sandbox:
                return (await sandbox.exec(f"echo {number}")).stdout

        assert await asyncio.gather(*(one(n) for n in range(20))) == [f"{n}\n" for n in range(20)]

    run(server, scenario)
