"""The kinds of `track`: where metrics go besides the console and metrics.jsonl."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quintet.config.section import ConfigErrors, ConfigSection, config_error, key

_REQUIRED = "false: if the server does not answer at the start, the run reports it and continues without the tracker"


class TensorBoardConfig(ConfigSection):
    """TensorBoard event files in the run folder."""

    kind: Literal["tensorboard"] = key(..., "TensorBoard (needs `pip install 'quintet[tensorboard]'`)")


class WandbConfig(ConfigSection):
    """A run of Weights & Biases, with its files in the run folder."""

    kind: Literal["wandb"] = key(..., "Weights & Biases (needs `pip install 'quintet[wandb]'`)")
    required: bool = key(True, _REQUIRED)
    arguments: dict[str, Any] = key(
        {}, "arguments of wandb.init, by name; `name` is the run's name and `dir` the run folder when not given"
    )

    def errors(self) -> ConfigErrors:
        """Yield an error for the argument config."""
        if "config" in self.arguments:
            yield config_error("arguments.config", "is always the whole run file; remove it, or use notes or tags")


class MLflowConfig(ConfigSection):
    """A run of MLflow."""

    kind: Literal["mlflow"] = key(..., "MLflow (needs `pip install 'quintet[mlflow]'`)")
    required: bool = key(True, _REQUIRED)
    tracking_uri: str | None = key(
        None, "address of a server or database; the file mlflow.db in the run folder when not given", min_length=1
    )
    experiment: str = key("quintet", "experiment of the run, created if it does not exist", min_length=1)
    run_name: str | None = key(None, "name of the run in MLflow; the run's name when not given", min_length=1)


TrackConfig = Annotated[TensorBoardConfig | WandbConfig | MLflowConfig, Field(discriminator="kind")]
