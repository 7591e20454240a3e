"""Documents of a receiver and a forwarder, as they write them."""

from __future__ import annotations


def reported(taken=100, acked=90, dropped=None, in_flight=10, final=False, unix_ns=5):
    return {"taken": taken, "acked": acked, "dropped": dropped or {}, "in_flight": in_flight,
            "final": final, "unix_ns": unix_ns}  # fmt: skip


def sender(accepted=95, window=5, said=None, run_id="host", worker="remote-0", **changes):
    return {"run_id": run_id, "attempt": 0, "worker": worker, "node": "node0", "hooks": ["h"],
            "connected": True, "accepted": accepted, "duplicates": 0, "window": window,
            "credit_bytes": 1000, "lag_s": 0.5, "reported": said, **changes}  # fmt: skip


def receiver(*senders, **changes):
    accepted = sum(one["accepted"] for one in senders)
    streams = [{"run_id": one["run_id"], "attempt": 0, "source": n, "shard": 0, "local_shard": n,
                "accepted": one["accepted"]}
               for n, one in enumerate(senders)]  # fmt: skip
    return {"schema": "asys.receiver/1", "run_id": "r", "attempt": 0, "name": "sae", "id": "ledger-1",
            "address": "tcp://10.0.0.1:7000", "job": "job", "unix_ns": 7, "final": False,
            "accepted": accepted, "duplicates": 0, "in_doubt": 0, "expired": 0, "refused": {},
            "window_bytes": 0, "connections": 1, "senders": list(senders), "streams": streams,
            **changes}  # fmt: skip


def forwarder(**changes):
    return {"schema": "asys.forwarder/1", "run_id": "host", "attempt": 0, "worker": "remote-0",
            "group": "remote", "job": "job", "unix_ns": 9, "final": True,
            "receiver": {"name": "sae", "id": "ledger-1", "address": "tcp://10.0.0.1:7000"},
            "hooks": ["h"], "taken": 100, "acked": 95, "dropped": {"slow": 5}, "in_flight": 0,
            "in_flight_bytes": 0, "resent": 0, "connections": 1, "refused": {}, **changes}  # fmt: skip
