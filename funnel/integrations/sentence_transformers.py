"""An adaptor inside a sentence-transformers model: encoded texts come out adapted, and are saved so."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from funnel.adaptors import Adaptor, Identity, OrthogonalAdaptor
from funnel.errors import InputError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def adapted(model: SentenceTransformer, adaptor: Adaptor, *, portable: bool = False) -> SentenceTransformer:
    """A model whose embeddings are adapted, so that `truncate_dim` takes adapted prefixes.

    The new model shares the modules of the one given, which stays as it is, and has its prompts, similarity and
    `truncate_dim`. Saved, it is loaded by `SentenceTransformer(folder, trust_remote_code=True)` where funnel is
    installed: sentence-transformers asks for that flag for every module that is not its own. A portable model holds
    its own modules alone: it loads without the flag and without funnel, but holds no adaptor that `Adaptor.load`
    could read again, and half precision rounds its rotation, which the adaptor itself keeps in float32.

    Args:
        model: gives embeddings [n, adaptor.dim].
        adaptor: any kind.
        portable: write the adaptor as sentence-transformers' own `Dense`; only rotations can be (`pca`,
            `rotation`), and `identity`, which adds nothing.

    Raises:
        InputError: the adaptor is of another width than the model, or is to be portable and is no rotation.
    """
    width = _full_width(model)
    if width not in (None, adaptor.dim):
        raise InputError(f"the adaptor is for {adaptor.dim} dims, the model gives {width}; fit one on its embeddings")
    modules: Any = OrderedDict(model.named_children())  # with their names, to which the model's settings refer
    added = _own_module(adaptor) if portable else adaptor
    if added is not None:
        modules[str(len(modules))] = added
    result = type(model)(
        modules=modules,
        device=str(model.device),
        prompts={name: prompt for name, prompt in model.prompts.items() if prompt is not None},
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
        backend=model.backend,
    )
    result.module_kwargs = model.module_kwargs
    return result


def _full_width(model: SentenceTransformer) -> int | None:
    """How wide the embeddings are before they are truncated, where the model says."""
    truncated, model.truncate_dim = model.truncate_dim, None
    try:
        return model.get_embedding_dimension()
    finally:
        model.truncate_dim = truncated


def _own_module(adaptor: Adaptor) -> Any:
    """The same map as a module of sentence-transformers, None where there is nothing to do."""
    if isinstance(adaptor, Identity):
        return None
    if not isinstance(adaptor, OrthogonalAdaptor):
        raise InputError(
            f"an adaptor of kind {adaptor.kind!r} is no rotation, and sentence-transformers has no module for it; "
            "leave portable out, and load the saved model with trust_remote_code=True where funnel is installed"
        )
    # Dense multiplies by the transpose of its weight.
    weight = adaptor.matrix.detach().T.clone(memory_format=torch.contiguous_format)
    from sentence_transformers.sentence_transformer.modules import Dense

    return Dense(adaptor.dim, adaptor.dim, bias=False, activation_function=None, init_weight=weight)
