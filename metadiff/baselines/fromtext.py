"""The field's other ways from a sentence to answers: a hypernetwork at once, one network for all, regression of the latent.

Shapes: B tasks, Z numbers of a latent, P weights, D numbers of a sentence's vector, N images of a task, E inputs of the learner.
"""

from __future__ import annotations

from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from metadiff.adapter import Generated
from metadiff.described import QuestionBatch, SentenceBatch, answer_loss
from metadiff.diffusion import Noise
from metadiff.hypernet import Decoder, LatentSource, Reader
from metadiff.standard import Standard


class EndToEndNet(nn.Module):
    def __init__(self, decoder: Decoder, reader: Reader) -> None:
        super().__init__()
        self.decoder, self.reader = decoder, reader


class EndToEnd:
    """The bar for all that goes by two stages: a hypernetwork of the sentence, trained on the answers alone."""

    def __init__(self, learner: Generated, net: EndToEndNet, *, text_noise: float) -> None:
        self.learner, self.text_noise, self._net = learner, text_noise, net

    @property
    def net(self) -> EndToEndNet:
        return self._net

    def loss(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        told_BZ = self._net.reader(batch.with_noise(self.text_noise, generator).sentence_BD, generator)
        return batch.loss(self.learner, self._net.decoder(told_BZ))

    def weights(self, sentence_BD: Tensor, noise: Noise) -> Tensor:
        theta_BP: Tensor = self._net.decoder(self._net.reader(sentence_BD))
        return theta_BP


class JointNet(nn.Module):
    """A layer of the image is scaled and shifted by the sentence (FiLM), twice."""

    def __init__(self, inputs: int, sentence: int, *, hidden: int, text_hidden: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.middle, self.give = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 2)
        self.reader = Reader(sentence, hidden=text_hidden, out=4 * hidden, dropout=dropout)

    def forward(self, sentence_BD: Tensor, inputs_BNE: Tensor, generator: Generator | None = None) -> Tensor:
        gain1, shift1, gain2, shift2 = self.reader(sentence_BD, generator)[:, None].chunk(4, dim=-1)
        x = silu(self.enter(inputs_BNE) * (1 + gain1) + shift1)
        out: Tensor = self.give(silu(self.middle(x) * (1 + gain2) + shift2))
        return out


class Joint:
    """No weights are made: one network for all tasks, which sees the sentence beside the image."""

    def __init__(self, net: JointNet, *, text_noise: float) -> None:
        self.text_noise, self._net = text_noise, net

    @property
    def net(self) -> JointNet:
        return self._net

    def loss(self, batch: QuestionBatch, generator: Generator) -> Tensor:
        batch = batch.with_noise(self.text_noise, generator)
        scores_BNW = self._net(batch.sentence_BD, batch.inputs_BNE, generator)
        return answer_loss(scores_BNW, batch.target_N).mean()

    def scores(self, sentence_BD: Tensor, inputs_BNE: Tensor) -> Tensor:
        found: Tensor = self._net(sentence_BD, inputs_BNE)
        return found


class LatentRegression:
    """`mlp`: a sentence's latent in one step, the mean where several answers are right."""

    def __init__(self, source: LatentSource, net: Reader, *, text_noise: float) -> None:
        self.source, self.text_noise, self._net = source, text_noise, net
        self.scale = Standard.of(source.latent_CZ.detach())

    @property
    def net(self) -> Reader:
        return self._net

    def loss(self, batch: SentenceBatch, generator: Generator) -> Tensor:
        batch = batch.with_noise(self.text_noise, generator)
        want_BZ = self.scale.standardise(self.source.drawn(batch, generator))
        told_BZ = self._net(batch.sentence_BD, generator)
        loss: Tensor = (told_BZ - want_BZ).square().mean()
        return loss

    def latents(self, sentence_BD: Tensor, noise: Noise) -> Tensor:
        found: Tensor = self.scale.restore(self._net(sentence_BD))
        return found

    def weights(self, sentence_BD: Tensor, noise: Noise) -> Tensor:
        return self.source.decode(self.latents(sentence_BD, noise))
