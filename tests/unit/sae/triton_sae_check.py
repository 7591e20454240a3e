"""Trains with the Triton kernels in Triton's interpreter beside the compiled ones.

    TRITON_INTERPRET=1 python triton_sae_check.py STEPS ARCHITECTURE...

A process of its own, because the variable must be set before Triton is first imported. Prints JSON:
architecture -> what differed most.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch


def main() -> None:
    sys.path.append(str(Path(__file__).parents[3]))
    from asys_bench.sae.kernels import torch_kernels
    from asys_bench.sae.kernels.triton_kernels import TritonKernels
    from tests.unit.sae import step_by_step as steps

    def refuse(*arguments: object) -> None:
        raise AssertionError("took torch's operators")

    torch.set_num_threads(1)
    for name in ("reconstruct", "reconstruct_nested", "accumulate"):
        setattr(torch_kernels, name, refuse)
    steps.make_small()
    count, found = int(sys.argv[1]), {}
    for architecture in sys.argv[2:]:
        rows, config = steps.rows_for(architecture), steps.config_of(architecture)
        compiled = steps.learner_of(config, rows)
        triton = steps.learner_of(config, rows, TritonKernels)
        assert (compiled.kernels.name, triton.kernels.name) == ("compiled", "triton")
        found[architecture] = asdict(steps.from_one_state(compiled, triton, rows, count))
        apart = steps.each_on_its_way(compiled, triton, rows, max(2, count // 10))
        found[architecture] |= {
            "apart": max(apart), "same_support": steps.same_support(compiled, triton, rows)
        }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
