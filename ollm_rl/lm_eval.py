"""lm-evaluation-harness on an exported model: `python -m ollm_rl.lm_eval run --model_args pretrained=sums --tasks ... --apply_chat_template`.

The command line is the harness's own (`lm-eval run --help`), with one more model, `option_lm`, which is taken if none is named. It is
the harness's `hf` with our classes registered, and refuses tasks that compare likelihoods of an export of kind `policy`.
"""

import sys
from typing import Any

from ollm_rl.common.progress import console
from ollm_rl.errors import ConfigurationError, OLLMError

MODEL = "option_lm"


def main(argv: list[str] | None = None) -> None:
    """Hand over to the harness; a user error ends with one message and exit code 2, as those of `ollm-rl`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        sys.argv = ["lm-eval", *with_model(arguments)]
        cli_evaluate()
    except OLLMError as error:
        console.print(f"error: {error}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(2)


def register() -> None:
    """Tell the harness of `option_lm`.

    Raises:
        ConfigurationError: the harness is not installed.
    """
    try:
        from lm_eval.api.registry import model_registry, register_model
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"this needs the package {error.name}, which is not here; expected the extra `harness`: pip install -c constraints.txt -e '.[harness]'"
        ) from error
    if MODEL in model_registry:
        return

    @register_model(MODEL)
    class OptionLM(HFLM):  # type: ignore[misc]
        """`hf` for exports. transformers hears of them here only: `--model hf` would score a floor as if it were a likelihood."""

        def __init__(self, *args: Any, **kwargs: Any):
            import torch

            import ollm_rl.options.hf  # noqa: F401  registers the classes

            place = "cuda" if torch.cuda.is_available() else "cpu"
            super().__init__(*args, **{"backend": "causal", "device": place, **kwargs})
            self.model.generation_config.max_new_tokens = None  # the task's budget, and not the one of the export

        def loglikelihood(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self._check_likelihoods(requests)
            return super().loglikelihood(requests, *args, **kwargs)

        def loglikelihood_rolling(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
            self._check_likelihoods(requests)
            return super().loglikelihood_rolling(requests, *args, **kwargs)

        def _check_likelihoods(self, requests: Any) -> None:
            if getattr(self.model.config, "kind", None) == "policy":
                from ollm_rl.options.next_token import FLOOR

                tasks = ", ".join(sorted({request.task_name for request in requests if request.task_name}))
                raise ConfigurationError(
                    f"{tasks or 'a task'} compares likelihoods, and a policy has none for most tokens: those that no option says have the "
                    f"log-probability {FLOOR:,.0f}, a floor and no likelihood. Export with kind=mixture, which gives every token one."
                )


def with_model(arguments: list[str]) -> list[str]:
    """The arguments, with our model if they name none and run something."""
    runs = arguments[:1] == ["run"] or (arguments[:1] and arguments[0].startswith("-") and len(arguments) > 1)
    named = any(a in ("--model", "-M", "--config", "-C") or a.startswith(("--model=", "--config=")) for a in arguments)
    return [*arguments, "--model", MODEL] if runs and not named else arguments


if __name__ == "__main__":
    main()
