"""The strongest feature of each sample, live, from another terminal: python live_features.py RUN"""

import sys

import asys_bench

run = asys_bench.open_run(sys.argv[1])
saes = run.saes()
with asys_bench.subscribe(run, list(saes)) as live:
    for sample in live:
        strength, feature = saes[sample.hook].encode(sample.tensor[:1].float()).max(1)
        print(sample.hook, sample.host_step, int(feature), f"{float(strength):.2f}", flush=True)
