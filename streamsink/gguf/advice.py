"""What a person should know before streaming with a model, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamsink.errors import setting

if TYPE_CHECKING:
    from streamsink.core.policy import SinkPolicy
    from streamsink.gguf.settings import CacheSettings
    from streamsink.gguf.traits import Traits


NO_SINK = (
    "nothing is pinned: once the window moves, most models lose their footing and write nonsense "
    f"(StreamingLLM, table 1): {setting('n_keep', 4)} or more"
)


def warnings(
    traits: Traits,
    settings: CacheSettings,
    policy: SinkPolicy | None = None,
    n_ctx: int | None = None,
    *,
    slack: int = 0,
    chat: bool = False,
) -> list[str]:
    """What is odd about a model, or about what is asked of it.

    Parameters
    ----------
    traits : Traits
        The model.
    settings : CacheSettings
        The cache.
    policy : SinkPolicy, optional
        What is kept and what evicted.
    n_ctx : int, optional
        Tokens of context that are asked for.
    slack : int
        Positions that the sink may trail.
    chat : bool
        Whether it shall chat by its own template.
    """
    found = [f"the vocabulary is odd: {line}" for line in traits.complaints]
    if chat and not traits.chat_template:
        found.append("the model brings no chat template: ChatML is tried")
    if traits.adds_bos and traits.bos is None:
        found.append("a text should begin with BOS, and the vocabulary has none")
    if traits.eos is None:
        ends = setting("max_tokens")
        found.append(f"the vocabulary has no token that ends a text: only {ends} does")
    n_ctx_within = traits.n_ctx_within(settings)
    if n_ctx is not None and n_ctx > n_ctx_within:
        found.append(
            f"{setting('n_ctx', n_ctx)} is more than the {n_ctx_within} tokens that the model was "
            f"trained on: lower it, or stretch them by {setting('rope_scaling', 'yarn')} and "
            f"{setting('rope_scale', -(-n_ctx // traits.n_ctx_unscaled))}"
        )
    if traits.n_swa and (n_ctx is None or n_ctx + slack > traits.n_swa):
        where = "" if n_ctx else "in a larger context "
        found.append(
            f"{len(traits.swa_layers) or 'some'} of {traits.n_layer} layers see the last "
            f"{traits.n_swa:,} tokens only: {where}what is pinned is out of their sight"
        )
    if policy and policy.n_keep == 0 and not traits.recurrent:
        found.append(NO_SINK)
    return found
