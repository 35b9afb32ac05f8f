"""The models of sentences by their names: each is built anew from facts that JSON can hold, which its checkpoint carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from metadiff import diffusion
from metadiff.adapter import Adapter, Generated
from metadiff.baselines.fromtext import EndToEnd, EndToEndNet, Joint, JointNet, LatentRegression
from metadiff.hypernet import HNet, HNetNet, Latents, LatentSource, Reader, begin, decoder_of
from metadiff.learner import Perceptron
from metadiff.metatraining import Pace, pace_of
from metadiff.methods.hyperldm import HyperCLIP, HyperLDM, LatentDenoiser, WeightEncoder
from metadiff.methods.latents import HVAE, MAML, source_net, source_of

if TYPE_CHECKING:
    from metadiff.params import HyperLDM as Section

SOURCES = ("hnet", "maml", "hvae")
TEXT_MODELS = (*SOURCES, "hyperldm", "hyperclip", "mlp", "end-to-end", "joint")
LATE = 2.0  # points by which later weights of a source may be worse than its best, and be kept
OF_LATENTS = ("hyperldm", "hyperclip", "mlp")
LEARNERS: dict[str, Callable[..., Generated]] = {"mlp": Perceptron, "adapter": Adapter}  # joint, maml and hvae: the first alone

TextMethod = HNet | HyperLDM | HyperCLIP | LatentRegression | EndToEnd | Joint  # they read sentences
Taught = TextMethod | MAML | HVAE
KEPT = {
    *("decoder", "latent", "hidden", "text_hidden", "text_noise", "dropout", "match", "latent_noise", "encoder_noise"),
    *("predicts", "schedule", "times", "without_text", "clip", "sampler", "sampling_steps", "guide_steps", "guide_lr"),
    *("latents_of", "inner_steps", "inner_lr", "kl"),
}


def text_pace(section: Section, model: str) -> Pace:
    """Of a source late weights are better: at a high rate its latents are not yet such as others learn well."""
    steps = section.encoder_steps if model == "hyperclip" else section.steps
    return replace(pace_of(section), steps=steps, rate="hyperldm.lr", slack=LATE if model in SOURCES else 0.0)


def text_facts(
    section: Section, model: str, *, learner: Generated, sentence: int, concepts: list[str], seed: int
) -> dict[str, Any]:
    """All that `build_text` needs; a checkpoint carries it."""
    own = {"model": model, "learner": asdict(learner), "sentence": sentence, "concepts": concepts, "seed": seed}
    return section.model_dump(include=KEPT) | own


def build_text(
    facts: Mapping[str, Any],
    *,
    source: LatentSource | None = None,
    known: Mapping[str, Tensor] | None = None,
    device: str = "cpu",
) -> Taught:
    """A method with the weights that its seed gives, from facts that JSON can hold; those of latents need their trained source.

    ``known`` are tensors that `maml` and `hvae` have besides: the latents of concepts, once trained, and the scale of weights.
    """
    learner, model, sentence = LEARNERS[facts["learner"]["kind"]](**facts["learner"]), facts["model"], facts["sentence"]
    hidden, latent = facts["hidden"], facts["latent"]
    text = {"hidden": facts["text_hidden"], "dropout": facts["dropout"]}
    both = {"hidden": hidden, "text_hidden": facts["text_hidden"], "dropout": facts["dropout"]}
    net: nn.Module
    with torch.device("meta"):  # no memory and, above all, no draw from the global generator
        if model == "hnet":
            decoder, latents = decoder_of(facts, learner), Latents(len(facts["concepts"]), latent)
            net = HNetNet(decoder, latents, Reader(sentence, out=latent, **text))
        elif model in SOURCES:
            assert isinstance(learner, Perceptron)
            net = source_net(facts, learner)
        elif model == "end-to-end":
            net = EndToEndNet(decoder_of(facts, learner), Reader(sentence, out=latent, **text))
        elif model == "joint":
            assert isinstance(learner, Perceptron)
            net = JointNet(learner.dim, sentence, **both)
        elif model == "mlp":
            net = Reader(sentence, out=latent, **text)
        elif model == "hyperclip":
            net = WeightEncoder(learner.size, sentence, hidden=hidden)
        else:
            net = LatentDenoiser(latent, sentence, hidden=2 * hidden, dropout=facts["dropout"])
    net = net.to_empty(device="cpu")
    begin(net, seed=facts["seed"])
    return _method(facts, learner, net.to(device), source, {name: value.to(device) for name, value in (known or {}).items()})


def _method(
    facts: Mapping[str, Any],
    learner: Generated,
    net: Any,  # noqa: ANN401 - one a model
    source: LatentSource | None,
    known: Mapping[str, Tensor],
) -> Taught:
    model, noise = facts["model"], facts["text_noise"]
    if model == "hnet":
        return HNet(learner, net, match=facts["match"], latent_noise=facts["latent_noise"], text_noise=noise)
    if model in SOURCES:
        assert isinstance(learner, Perceptron)
        return source_of(facts, learner, net, known)
    if model == "end-to-end":
        return EndToEnd(learner, net, text_noise=noise)
    if model == "joint":
        return Joint(net, text_noise=noise)
    assert source is not None, f"{model} is of the latents of a source"
    if model == "mlp":
        return LatentRegression(source, net, text_noise=noise)
    if model == "hyperclip":
        return HyperCLIP(source, net, facts)
    schedule = (diffusion.cosine if facts["schedule"] == "cosine" else diffusion.linear)(facts["times"])
    return HyperLDM(source, net, schedule, facts)
