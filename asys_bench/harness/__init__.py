"""The SLA harness: suite -> plan -> runner -> stats -> verdict. `stats`, `plan` and `verdict` are pure."""
