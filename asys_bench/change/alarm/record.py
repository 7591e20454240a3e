"""What is kept of alarms: lines of `<run>/alarm/alarms.jsonl`, and what a webhook gets.

An alarm has the schema `asys.alarm/1`. When values are back to what they were before it, a line with the
schema `asys.alarm_over/1` says so; the webhook gets alarms alone."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asys_bench.change.alarm.bank import Finding
from asys_bench.change.alarm.options import AlarmOptions
from asys_bench.change.alarm.webhook import Webhook
from asys_bench.contracts.run_files import ALARM_OVER_SCHEMA, ALARM_SCHEMA, ALARMS_FILE
from asys_bench.contracts.sink import SinkContext
from asys_bench.system.files.append_file import AppendFile

log = logging.getLogger(__name__)


class AlarmRecord:
    """Of one worker.

    folder: of the run's alarms.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, context: SinkContext, options: AlarmOptions, folder: Path) -> None:
        self._context, self._options = context, options
        self._file = AppendFile(folder / ALARMS_FILE)
        self._webhook: Webhook | None = None
        if options.webhook is not None:
            self._webhook = Webhook(
                options.webhook,
                options.webhook_timeout_s,
                context.slot.counter("alarm_webhooks_sent"),
                context.slot.counter("alarm_webhooks_failed"),
            )

    def raised(
        self,
        finding: Finding,
        text: str,
        about: dict[str, Any],
        latency_s: float | None,
    ) -> None:
        """An alarm. about: number, watcher, host_step, weights_version, and what else is known of it."""
        options = self._options
        document = {
            **self._head(ALARM_SCHEMA, text),
            "run_dir": str(self._context.run_dir),
            **about,
            "latency_s": latency_s,
            **{key: value for key, value in asdict(finding).items() if key != "watcher"},
            "false_alarms_per_day": options.false_alarms_per_day,
            "before_s": options.before_s,
            "after_s": options.after_s,
        }
        self._keep(document)
        if self._webhook is not None:
            self._webhook.send(document)

    def over(self, text: str, about: dict[str, Any]) -> None:
        """What an alarm saw is over. about: number, watcher, host_step, weights_version, value."""
        self._keep({**self._head(ALARM_OVER_SCHEMA, text), **about})

    def close(self, webhook_s: float) -> None:
        """Wait so long for the webhook at the most."""
        if self._webhook is not None:
            self._webhook.close(webhook_s)
        self._file.close()

    def _head(self, schema: str, text: str) -> dict[str, Any]:
        context = self._context
        return {
            "schema": schema,
            "text": f"{context.run_id}: {text}",
            "run_id": context.run_id,
            "worker": context.name,
            "attempt": context.attempt,
            "incarnation": context.incarnation,
            "unix_ns": time.monotonic_ns() + context.clock_shift_ns + context.wall_offset_ns,
        }

    def _keep(self, document: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(document) + "\n")
        except OSError as error:
            log.error("%s: a line is not kept: %s", ALARMS_FILE, error)
