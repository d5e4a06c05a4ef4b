"""Generate text and visual embeddings with an Emu, by the rules of its release (beam search of transformers 4.29)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rules:
    """Changes of the scores before a token is chosen, over `<s>` and the new tokens, not over the prompt."""

    min_new_tokens: int
    repetition_penalty: float
    no_repeat_ngram_size: int
    eos_token_id: int

    def apply(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Return the changed scores `[R, V]`, given `tokens` `[R, T]`, `<s>` first."""
        if self.repetition_penalty != 1:
            seen = scores.gather(1, tokens)
            seen = torch.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
            scores = scores.scatter(1, tokens, seen)
        n = self.no_repeat_ngram_size
        if n and tokens.shape[1] >= n:
            windows = tokens.unfold(1, n, 1)  # [R, windows, n]
            last = tokens[:, tokens.shape[1] - n + 1 :]
            repeats = (windows[..., :-1] == last[:, None]).all(-1)
            for row, (one, follows) in enumerate(zip(repeats, windows[..., -1], strict=True)):
                scores[row, follows[one]] = -torch.inf
        if tokens.shape[1] <= self.min_new_tokens:
            scores[:, self.eos_token_id] = -torch.inf
        return scores


@dataclass
class Hypotheses:
    """The best finished sequences of one prompt, at most `capacity`."""

    capacity: int
    length_penalty: float
    found: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def add(self, tokens: list[int], log_prob: float) -> None:
        """Save a sequence, if it is better than the worst of `capacity` sequences."""
        score = log_prob / len(tokens) ** self.length_penalty
        if len(self.found) == self.capacity:
            worst = min(range(self.capacity), key=lambda i: self.found[i][0])
            if score <= self.found[worst][0]:
                return
            del self.found[worst]
        self.found.append((score, tokens))

    def finish(self, best: float, length: int) -> None:
        """Stop if no continuation of this `length` and log-likelihood is better than the worst sequence."""
        full = len(self.found) == self.capacity
        if full and min(score for score, _ in self.found) >= best / length**self.length_penalty:
            self.done = True

    def best(self) -> list[int]:
        """Return the tokens of the best sequence."""
        return max(self.found, key=lambda pair: pair[0])[1]


class TextGeneration:
    """The generation of a model with `embed`, `extend`, `encode_images` and the heads of `decoder.lm`."""

    config: Any
    decoder: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        max_new_tokens: int = 128,
        num_beams: int = 1,
        length_penalty: float = 0.0,
        min_new_tokens: int = 0,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
    ) -> Tensor:
        """Return the prompts followed by new tokens, `[B, L + T]`, padded on the right.

        Args:
          input_ids: prompts `[B, L]`, padded on the left where `attention_mask` is 0.
          pixel_values: images `[n, 3, S, S]` in the order of their tokens.
          max_new_tokens: the maximum context length is a further limit.
          num_beams: 1 for greedy search or sampling; more for beam search.
          length_penalty: a beam's log-likelihood is divided by (1 + new tokens) ** length_penalty.
          min_new_tokens: number of new tokens before `</s>`.
          repetition_penalty, no_repeat_ngram_size: over the new tokens.
          do_sample: sample with `temperature`, from the `top_k` most likely tokens with total probability `top_p`.
        """
        config = self.config
        if num_beams > 1 and do_sample:
            raise ValueError("Beam search does not sample: pass num_beams=1 or do_sample=False.")
        capacity = config.max_position_embeddings - input_ids.shape[1]
        if capacity < 1:
            raise ValueError(
                f"The prompt has {input_ids.shape[1]} tokens, the context {config.max_position_embeddings}."
            )
        limit = min(max_new_tokens, capacity)
        rules = Rules(min_new_tokens, repetition_penalty, no_repeat_ngram_size, config.eos_token_id)
        hidden, cache, mask = self._read(input_ids, attention_mask, pixel_values)
        if num_beams > 1:
            rows = self._beam_search(hidden, cache, mask, rules, limit, num_beams, length_penalty)
        else:
            choose = _sampler(temperature, top_k, top_p) if do_sample else lambda scores: scores.argmax(-1)
            rows = self._search(hidden, cache, mask, rules, limit, choose)
        new = input_ids.new_full((len(rows), max(map(len, rows))), config.pad_token_id)
        for row, tokens in zip(new, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens, dtype=row.dtype, device=row.device)
        return torch.cat([input_ids, new], dim=1)

    @torch.no_grad()
    def generate_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, pixel_values: Tensor | None = None
    ) -> Tensor:
        """Return the visual embeddings `[B, Q, D]` that follow prompts ending in `[IMG]`, in float32."""
        if not bool((input_ids[:, -1] == self.config.boi_token_id).all()):
            raise ValueError("The prompts must end in [IMG]: pass open_image=True to the processor.")
        hidden, cache, mask = self._read(input_ids, attention_mask, pixel_values)
        embeddings = []
        for _ in range(self.config.causal_former["num_image_tokens"]):
            embeddings.append(self.decoder.lm.stu_regress_head(hidden))
            hidden, cache, mask = self._step(embeddings[-1], cache, mask)
        return torch.stack(embeddings, dim=1).float()

    def _read(self, input_ids: Tensor, attention_mask: Tensor | None, pixel_values: Tensor | None) -> Any:
        """Return the last state `[B, D]` of the prompts, the cache, and the attention mask."""
        visual = None if pixel_values is None else self.encode_images(pixel_values)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden, cache = self.extend(self.embed(input_ids, visual), mask)
        return hidden[:, -1], cache, mask

    def _step(self, embedding: Tensor, cache: Any, mask: Tensor) -> Any:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        hidden, cache = self.extend(embedding[:, None], mask, cache)
        return hidden[:, -1], cache, mask

    def _next_scores(self, hidden: Tensor) -> Tensor:
        return self.decoder.lm.lm_head(hidden).float()

    def _search(
        self, hidden: Tensor, cache: Any, mask: Tensor, rules: Rules, limit: int, choose: Any
    ) -> list[list[int]]:
        """Return the new tokens of each row: one token per step, until `</s>`."""
        tokens = torch.full((len(hidden), 1), self.config.bos_token_id, device=hidden.device)
        done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        while True:
            chosen = choose(rules.apply(self._next_scores(hidden).to(tokens.device), tokens))
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            done |= chosen == rules.eos_token_id
            if tokens.shape[1] > limit or bool(done.all()):
                return [_until(row, rules.eos_token_id) for row in tokens[:, 1:].tolist()]
            hidden, cache, mask = self._step(self.decoder.lm.model.embed_tokens(chosen), cache, mask)

    def _beam_search(
        self, hidden: Tensor, cache: Any, mask: Tensor, rules: Rules, limit: int, beams: int, length_penalty: float
    ) -> list[list[int]]:
        """Return the new tokens of the best hypothesis of each row."""
        batch = len(hidden)
        rows = torch.arange(batch, device=hidden.device).repeat_interleave(beams)
        hidden, cache, mask = hidden[rows], _take(cache, rows), mask[rows.to(mask.device)]
        tokens = torch.full((batch * beams, 1), self.config.bos_token_id, device=hidden.device)
        log_probs = torch.full((batch, beams), -1e9, device=hidden.device)  # at the start all beams are equal
        log_probs[:, 0] = 0
        hypotheses = [Hypotheses(beams, length_penalty) for _ in range(batch)]
        while True:
            scores = rules.apply(self._next_scores(hidden).to(tokens.device).log_softmax(-1), tokens)
            vocabulary = scores.shape[-1]
            scores = (log_probs[:, :, None] + scores.view(batch, beams, vocabulary)).view(batch, -1)
            best, index = scores.topk(2 * beams, dim=1)
            chosen = []  # (log-probability, row of its beam, token)
            for row, one in enumerate(hypotheses):
                following = []
                for rank, (value, i) in enumerate(zip(best[row].tolist(), index[row].tolist(), strict=True)):
                    origin, token = row * beams + i // vocabulary, i % vocabulary
                    if token != rules.eos_token_id:
                        following.append((value, origin, token))
                    elif rank < beams and not one.done:
                        one.add(tokens[origin].tolist(), value)
                chosen += following[:beams]
                one.finish(float(best[row, 0]), tokens.shape[1] + 1)
            values, origins, added = zip(*chosen, strict=True)
            log_probs = log_probs.new_tensor(values).view(batch, beams)
            rows, last = tokens.new_tensor(origins), tokens.new_tensor(added)
            tokens = torch.cat([tokens[rows], last[:, None]], dim=1)
            if tokens.shape[1] > limit or all(one.done for one in hypotheses):
                break
            cache, mask = _take(cache, rows), mask[rows.to(mask.device)]
            hidden, cache, mask = self._step(self.decoder.lm.model.embed_tokens(last), cache, mask)
        for row, one in enumerate(hypotheses):
            for beam in range(beams) if not one.done else ():
                one.add(tokens[row * beams + beam].tolist(), float(log_probs[row, beam]))
        ids = [one.best()[1:] for one in hypotheses]
        return [[*row, rules.eos_token_id] if len(row) < limit else row for row in ids]


def _take(cache: Any, rows: Tensor) -> Any:
    return tuple(tuple(array[rows.to(array.device)] for array in layer) for layer in cache)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


def _sampler(temperature: float, top_k: int, top_p: float) -> Any:
    def choose(scores: Tensor) -> Tensor:
        scores = scores / temperature
        ordered, order = scores.sort(dim=-1, descending=True)
        if top_k:
            ordered[:, top_k:] = -torch.inf
        probabilities = ordered.softmax(-1)
        probabilities[probabilities.cumsum(-1) - probabilities >= top_p] = 0
        return order.gather(1, torch.multinomial(probabilities, 1))[:, 0]

    return choose
