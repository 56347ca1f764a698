"""Train one model of the embedded pair on the corpus; stops and resumes at any checkpoint.

Muon on the layers' matrices has a lower loss after 100 steps here than AdamW after 150 (`docs/log.md`).
"""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from navtoken.embedded import corpus as corpora
from navtoken.embedded.recipe import CONTEXT, SHAPES, PairOptions
from navtoken.embedded.tokenizer import train_tokenizer


@dataclass(frozen=True)
class Data:
    """What a model of the pair is trained on."""

    tokenizer: PreTrainedTokenizerFast
    easy: corpora.Corpus
    train: corpora.Corpus
    valid: corpora.Corpus


def prepare(options: PairOptions) -> Data:
    """Tokenizer and corpora, made where they are missing."""
    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.work / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        texts = (f"{prompt} {trace}" for prompt, trace in corpora.vocabulary_examples(options.seed))
        train_tokenizer(texts, CONTEXT).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = {
        "easy": (corpora.EASY, options.num_easy_examples, options.seed),
        "train": (corpora.FAMILIES, options.num_examples, options.seed),
        "valid": (corpora.FAMILIES, options.num_validation, options.seed + 1),
    }
    for name, (tasks, num, seed) in parts.items():
        path = options.work / f"{name}.npz"
        if not path.exists():
            print(f"writing {num} examples to {path}", flush=True)
            corpora.save(
                corpora.tokenise(corpora.examples(tasks, num, seed), tokenizer, options.max_length), path
            )
    return Data(tokenizer, *(corpora.load(options.work / f"{name}.npz") for name in parts))


def learning_rate(options: PairOptions, step: int, num_steps: int) -> float:
    """Warm-up, plateau, linear decay to zero."""
    left = (num_steps - step) / (options.decay * num_steps)
    return options.lr * min(1.0, (step + 1) / options.warmup, left)


class Trainer:
    """One model's training: Muon on the layers' matrices, AdamW on embeddings and norms."""

    def __init__(self, name: str, options: PairOptions) -> None:
        self.name = name
        self.options = options
        self.data = prepare(options)
        self.tokenizer = self.data.tokenizer
        self.num_steps = SHAPES[name].steps
        torch.manual_seed(options.seed)
        self.model = Qwen3ForCausalLM(SHAPES[name].config(self.tokenizer))
        matrices = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=options.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.folder = options.work / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = options.work / f"{name}.log.jsonl"
        self.step = 0
        self.seconds = 0.0
        self.resume()

    def run(self) -> None:
        """Train from the last checkpoint to the end."""
        started, losses = time.monotonic() - self.seconds, []
        for data, rows in self.batches():
            losses.append(self.update(data, rows))
            self.step += 1
            self.seconds = time.monotonic() - started
            if self.step % self.options.save_every == 0 or self.step == self.num_steps:
                self.record(float(np.mean(losses)))
                self.save()
                losses = []

    def batches(self) -> Iterator[tuple[corpora.Corpus, np.ndarray]]:
        """Batches from the current step on, the same ones whether or not training was interrupted."""
        num_easy = SHAPES[self.name].easy_steps
        passed = 0
        for data, end in ((self.data.easy, num_easy), (self.data.train, self.num_steps)):
            epoch = 0
            while passed < end:
                rng = np.random.default_rng((self.options.seed, epoch))
                for rows in itertools.islice(
                    corpora.epoch_batches(data, self.options.batch_tokens, rng), end - passed
                ):
                    passed += 1
                    if passed > self.step:
                        yield data, rows
                epoch += 1

    def update(self, data: corpora.Corpus, rows: np.ndarray) -> float:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.options, self.step, self.num_steps)
        loss = self.loss(data, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def loss(self, data: corpora.Corpus, rows: np.ndarray) -> torch.Tensor:
        """Mean negative log-likelihood of the response tokens, in nats."""
        ids_BT, labels_BT = data.batch(rows, self.tokenizer.pad_token_id)
        hidden_BTD = self.model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
        targets = labels_BT[:, 1:]
        kept = targets != -100
        logits_NV = self.model.lm_head(hidden_BTD[:, :-1][kept])
        return torch.nn.functional.cross_entropy(logits_NV, targets[kept])

    @torch.no_grad()
    def validate(self) -> float:
        rng = np.random.default_rng(0)
        batches = list(corpora.epoch_batches(self.data.valid, 8192, rng))[:12]
        return float(np.mean([self.loss(self.data.valid, rows).item() for rows in batches]))

    def record(self, train_loss: float) -> None:
        entry = {
            "step": self.step,
            "train_loss": round(train_loss, 5),
            "valid_loss": round(self.validate(), 5),
            "seconds": round(self.seconds, 1),
        }
        with self.log.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        print(self.name, entry, flush=True)

    def save(self) -> None:
        """Write weights (a snapshot each time) and the optimisers' state, then rename."""
        snapshot = self.folder / f"step{self.step:06d}"
        self.model.save_pretrained(snapshot)
        temporary = self.folder / "state.tmp"
        torch.save(
            {
                "step": self.step,
                "seconds": self.seconds,
                "optimizers": [o.state_dict() for o in self.optimizers],
            },
            temporary,
        )
        temporary.replace(self.folder / "state.pt")

    def resume(self) -> None:
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        trained = AutoModelForCausalLM.from_pretrained(self.folder / f"step{self.step:06d}")
        self.model.load_state_dict(trained.state_dict())
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
