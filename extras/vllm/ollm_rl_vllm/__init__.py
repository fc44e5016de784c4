"""Exported latent policies in vLLM: what `ollm-rl export` wrote is served by `LLM("sums")` and `vllm serve sums` as it is."""


def register() -> None:
    """Tell transformers and vLLM of the `model_type` of exports and of their class. vLLM calls this in each of its processes."""
    from vllm import ModelRegistry

    import ollm_rl.options.hf  # noqa: F401  the configuration, with which vLLM reads the directory's config.json

    ModelRegistry.register_model("OptionLMForCausalLM", "ollm_rl_vllm.model:OptionLMForCausalLM")
