"""stable-baselines3: PPO on CartPole."""

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from asys_bench.callbacks.stable_baselines3 import ObserveCallback


class PrintLosses(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        for name, value in self.logger.name_to_value.items():
            if "loss" in name:
                print("loss", name, float(value))


callbacks = [PrintLosses()]
callbacks.append(ObserveCallback(hooks=["mlp_extractor.policy_net", "mlp_extractor.value_net"]))
model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu")
model.learn(1024, callback=callbacks, log_interval=1000)
