"""Follows in etcd who has which layers: prints every layout as a JSON line as soon as it is another one.

python -m benchmarks.shards.layouts PORT
"""

from __future__ import annotations

import asyncio
import sys

from deepinfer.fleet import keys
from deepinfer.fleet.store import EtcdStore

_LOOK_EVERY_SECONDS = 0.05


async def main(port: int) -> None:
    seen: dict[str, bytes] = {}
    async with EtcdStore.connect([f"127.0.0.1:{port}"]) as store:
        while True:
            values = (await store.read(keys.LAYOUTS)).values
            for key in sorted(key for key in values if seen.get(key) != values[key]):
                print(values[key].decode(), flush=True)
            seen = values
            await asyncio.sleep(_LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
