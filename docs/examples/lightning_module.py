"""Lightning: an autoencoder of random patterns."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset


class Autoencoder(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(16, 48), torch.nn.ReLU())
        self.decoder = torch.nn.Linear(48, 16)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = (self.decoder(self.encoder(x)) - x).square().mean()
        print("loss", loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


lightning.seed_everything(0)
data = DataLoader(TensorDataset(torch.randn(2048, 16)), batch_size=64, shuffle=True)
callbacks = []
trainer = lightning.Trainer(
    max_epochs=2,
    accelerator="cpu",
    callbacks=callbacks,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Autoencoder(), data)
