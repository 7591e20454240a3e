"""SAELens's own trainer trains from our archive and from our live bus."""

import runpy
import threading
import warnings
from pathlib import Path

import pytest
import torch

from asys_bench.config.assembly import create_data_bus
from asys_bench.config.sections.bus import BusConfig
from asys_bench.contracts.packet import DTYPE_CODE, PacketMeta
from asys_bench.rundir.archive_view import ArchiveView
from asys_bench.rundir.saelens_provider import LiveRows, data_provider
from asys_bench.sae.exchange import import_saelens

pytestmark = [pytest.mark.interop, pytest.mark.rest]
OFFLINE = Path(__file__).parent.parent / "unit" / "offline" / "conftest.py"
WIDTH, BATCH = 12, 256


@pytest.fixture(scope="module")
def sae_lens():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", exc_type=ImportError)


def fit(sae_lens, provider, rows):
    """A TopK SAE trained by SAELens on `rows` rows."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(0)
    config = sae_lens.TopKTrainingSAEConfig(d_in=WIDTH, d_sae=24, k=3)
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=rows,
            train_batch_size_samples=BATCH,
            lr=1e-2,
            lr_end=1e-3,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae_lens.TopKTrainingSAE(config),
        provider,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.fit()


def fvu(sae, x_BD):
    with torch.no_grad():
        error = (sae(x_BD) - x_BD).square().sum()
    return float(error / (x_BD - x_BD.mean(0)).square().sum())


def test_it_trains_from_an_archive_and_we_open_what_it_made(tmp_path, sae_lens):
    run_dir = runpy.run_path(str(OFFLINE))["write_run"](tmp_path / "run", rows=6000)
    rows = ArchiveView(run_dir).torch(
        "policy.mlp", batch_rows=BATCH, shuffle_window=32_768, drop_last=True
    )
    provider = data_provider(rows, epochs=None)
    sae = fit(sae_lens, provider, 200 * BATCH)
    x_BD = runpy.run_path(str(OFFLINE))["data"](1000)
    assert fvu(sae, x_BD) < 0.5
    sae.save_inference_model(tmp_path / "theirs")
    ours, _ = import_saelens(tmp_path / "theirs")
    torch.testing.assert_close(ours(x_BD), sae(x_BD), atol=1e-2, rtol=1e-4)


def test_it_trains_from_the_live_bus(sae_lens):
    data = runpy.run_path(str(OFFLINE))["data"](20_000)
    config = BusConfig(backend="mp_queue", capacity_packets=512, capacity_mib=8)
    done = threading.Event()
    with create_data_bus(config, [], names=("policy.mlp",)) as bus:

        def host():
            producer = bus.producer(0)
            meta = PacketMeta(bus.intern("policy.mlp"), 0, DTYPE_CODE[torch.float32], (64, WIDTH))
            while not done.is_set():
                for part in data.split(64)[:-1]:
                    if done.wait(0.001):
                        break
                    producer.push(meta, part, 0.05)

        provider = data_provider(LiveRows(bus, "policy.mlp", BATCH, buffer_rows=2048))
        thread = threading.Thread(target=host)
        thread.start()
        try:
            sae = fit(sae_lens, provider, 150 * BATCH)
        finally:
            done.set()
            thread.join()
            provider.close()
    assert fvu(sae, data[:1000]) < 0.5
