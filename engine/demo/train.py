"""Trains the demo model from scratch and writes it as a Hugging Face checkpoint.

    python engine/demo/train.py --out engine/demo          generate the text, train, write the model, evaluate it
    python engine/demo/train.py --out engine/demo --eval   only evaluate the model that is there
    python engine/demo/train.py --out engine/demo --draft  train the draft model of the model that is there, into draft/
"""

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from corpus import FINISH_SOURCES, NO_SUMS, SOURCES, Dialogue, dialogues, normalised
from eval_prompts import HELD_OUT, KNOWN

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The trainer of the tokenizer numbers them first.
END_OF_TEXT, START, END = range(3)
VOCAB = 2048
IGNORE = -100
MAX_BYTES = 5_900_000
DRAFT_BATCH_TOKENS = 2048

# The split of the Qwen family: words with their leading space, single digits, punctuation, white space.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def held_out_questions() -> set[str]:
    return {normalised(prompt) for prompt, _ in HELD_OUT}


def train_tokenizer(seed: int, count: int) -> Tokenizer:
    """A byte-level BPE tokenizer, so that every text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    texts = (m["content"] for d in itertools.islice(dialogues(seed, held_out_questions()), count) for m in d)
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def model_config() -> Qwen3Config:
    """Six layers, so that three nodes can hold two each. All dimensions are multiples of the quantisation group of 32."""
    return Qwen3Config(
        vocab_size=VOCAB, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attention_dropout=0.0, use_sliding_window=False)


def draft_config() -> Qwen3Config:
    """The draft model: a fifth of the weights, and two layers instead of six, so a token of it takes a fraction of the time."""
    return Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, attention_dropout=0.0, use_sliding_window=False)


Example = tuple[list[int], list[int]]


class Encoder:
    """Turns dialogues into token ids and labels. Only what the assistant says is learned."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.newline = self.ids("\n")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat(self, dialogue: Dialogue) -> Example:
        ids: list[int] = []
        labels: list[int] = []
        for message in dialogue:
            head = [START] + self.ids(message["role"] + "\n")
            body = self.ids(message["content"]) + [END]
            ids += head + body + self.newline
            learned = body if message["role"] == "assistant" else [IGNORE] * len(body)
            labels += [IGNORE] * len(head) + learned + [IGNORE] * len(self.newline)
        return ids, labels

    def plain(self, dialogue: Dialogue) -> Example:
        """The last answer as bare text, so that the model can also continue a text outside of a chat."""
        ids = self.ids(dialogue[-1]["content"]) + [END_OF_TEXT]
        return ids, ids


def batches(encoder: Encoder, seed: int, tokens: int, shares: list) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of about `tokens` tokens. Dialogues of like length go together, so little is spent on padding."""
    rng = random.Random(seed)
    source = dialogues(seed, held_out_questions(), shares)
    while True:
        pool = [encoder.plain(d) if rng.random() < 0.04 else encoder.chat(d) for d in itertools.islice(source, 1500)]
        pool.sort(key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if len(example[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            # Padding needs no mask: it comes last, where causal attention hides it from everything that is learned.
            ids = torch.tensor([ids + [END_OF_TEXT] * (width - len(ids)) for ids, _ in group])
            labels = torch.tensor([labels + [IGNORE] * (width - len(labels)) for _, labels in group])
            yield ids, labels


def answer_scores(model: Qwen3ForCausalLM, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Logits where `keep` says that the next token is learned. Computing them there alone saves much of the work."""
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
    return model.lm_head(hidden[keep]).float()


def answer_loss(model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the learned tokens."""
    wanted = labels[:, 1:]
    keep = wanted != IGNORE
    return F.cross_entropy(answer_scores(model, ids, keep), wanted[keep])


def distance(model: Qwen3ForCausalLM, teacher: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How far the model's distribution of the learned tokens is from the teacher's: the KL divergence, in nats."""
    keep = labels[:, 1:] != IGNORE
    with torch.no_grad():
        wanted = F.log_softmax(answer_scores(teacher, ids, keep), -1)
    return F.kl_div(F.log_softmax(answer_scores(model, ids, keep), -1), wanted, reduction="batchmean", log_target=True)


def optimizers_of(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Matrices inside the layers learn in fewer steps with Muon; the embedding and the norms stay with Adam."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [torch.optim.Muon(matrices, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98))]


def descend(model: Qwen3ForCausalLM, loss: torch.Tensor, optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    """One step down the gradient of `loss`."""
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = rate
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def first_rate(step: int) -> float:
    """The learning rate of the first stage. It falls slowly, because the finish brings it down to zero."""
    return 0.006 * min(1.0, (step + 1) / 50, 0.01 + 0.99 * (2000 - step) / 1600)


def finish_rate(step: int, steps: int) -> float:
    """The learning rate of a finishing stage, which falls to zero."""
    return 0.004 * min((step + 1) / 10, (steps - step) / steps)


def train(tokenizer: Tokenizer, args: argparse.Namespace, stage: int) -> tuple[Qwen3ForCausalLM, dict[str, float]]:
    """Run one stage: stage 0 from random weights, the finishing stages from the written ones."""
    first = stage == 0
    steps = args.steps if first else args.finish_steps
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    # On short texts the plain attention is the faster one on a CPU.
    attention = "sdpa" if device.type == "cuda" else "eager"
    config = model_config()
    config._attn_implementation = attention
    if first:
        model = Qwen3ForCausalLM(config)
    else:
        model = Qwen3ForCausalLM.from_pretrained(args.out, dtype=torch.float32, attn_implementation=attention)
    model.to(device).train()
    optimizers = optimizers_of(model)
    # The first stage hands on the running average of its weights, which is as good as weights after a falling rate.
    average = Qwen3ForCausalLM(config).to(device).eval()
    average.load_state_dict(model.state_dict())
    source = batches(Encoder(tokenizer), args.seed + 1 + stage, args.batch_tokens, SOURCES if first else FINISH_SOURCES)
    began, smooth, seen = time.time(), 0.0, 0
    for step in range(steps):
        rate = first_rate(step) if first else finish_rate(step, steps)
        ids, labels = next(source)
        seen += ids.numel()
        with torch.autocast(device.type, torch.bfloat16):
            loss = answer_loss(model, ids.to(device), labels.to(device))
        descend(model, loss, optimizers, rate)
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), model.parameters()):
                mean.lerp_(parameter, max(0.02, 1 / (step + 1)))
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:5d} loss {smooth:.4f} rate {rate:.5f} {seen / (time.time() - began):.0f} tokens/s "
                  f"{time.time() - began:.0f} s", flush=True)
    return (average if first else model), {"loss": smooth, "tokens": seen, "seconds": time.time() - began}


def near_embedding(teacher: torch.Tensor, width: int) -> torch.Tensor:
    """The teacher's embedding in the `width` directions in which it varies most: a better start than random rows."""
    directions = torch.linalg.svd(teacher, full_matrices=False).Vh[:width]
    return teacher @ directions.T


def distil(args: argparse.Namespace) -> tuple[Qwen3ForCausalLM, dict[str, float]]:
    """Teach the draft model to predict what the written model predicts, on the text of the first stage."""
    torch.manual_seed(args.seed)
    teacher = Qwen3ForCausalLM.from_pretrained(args.out, dtype=torch.float32, attn_implementation="eager").eval()
    config = draft_config()
    config._attn_implementation = "eager"
    model = Qwen3ForCausalLM(config).train()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(near_embedding(teacher.model.embed_tokens.weight, config.hidden_size))
    optimizers = optimizers_of(model)
    source = batches(Encoder(Tokenizer.from_file(str(args.out / "tokenizer.json"))), args.seed + 11, DRAFT_BATCH_TOKENS, SOURCES)
    began, smooth, seen = time.time(), 0.0, 0
    for step in range(args.draft_steps):
        ids, labels = next(source)
        seen += ids.numel()
        with torch.autocast("cpu", torch.bfloat16):
            loss = distance(model, teacher, ids, labels)
        descend(model, loss, optimizers, 0.008 * min((step + 1) / 50, (args.draft_steps - step) / args.draft_steps))
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 20 == 0 or step == args.draft_steps - 1:
            print(f"step {step:5d} distance {smooth:.4f} {seen / (time.time() - began):.0f} tokens/s {time.time() - began:.0f} s", flush=True)
    return model, {"distance": smooth, "tokens": seen, "seconds": time.time() - began}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_weights(model: Qwen3ForCausalLM, out: Path) -> None:
    """Write weights and configuration with the keys that published Qwen3 checkpoints have."""
    out.mkdir(parents=True, exist_ok=True)
    # The output matrix is the embedding, so it is stored once.
    tensors = {n: p.detach().to("cpu", torch.bfloat16).contiguous() for n, p in model.named_parameters() if n != "lm_head.weight"}
    bad = [n for n, t in tensors.items() if not torch.isfinite(t).all()]
    if bad:
        raise SystemExit(f"these weights are not finite: {bad}")
    path = out / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)
    if path.stat().st_size > MAX_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}")
    c = model.config
    write_json(out / "config.json", {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": c.vocab_size, "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size, "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads, "num_key_value_heads": c.num_key_value_heads, "head_dim": c.head_dim,
        "max_position_embeddings": c.max_position_embeddings, "max_window_layers": c.num_hidden_layers, "rms_norm_eps": c.rms_norm_eps,
        "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False,
        "attention_dropout": 0.0, "sliding_window": None, "use_sliding_window": False, "initializer_range": 0.02,
        "bos_token_id": END_OF_TEXT, "eos_token_id": END, "torch_dtype": "bfloat16", "use_cache": True})


def write_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the whole checkpoint."""
    write_weights(model, out)
    write_json(out / "generation_config.json", {
        "bos_token_id": END_OF_TEXT, "eos_token_id": [END, END_OF_TEXT], "pad_token_id": END_OF_TEXT, "do_sample": True,
        "temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 256})
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": SPECIAL[2], "pad_token": SPECIAL[0],
        "unk_token": None, "additional_special_tokens": SPECIAL[1:], "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.max_position_embeddings, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": CHAT_TEMPLATE})


def round_like_int8(model: torch.nn.Module) -> None:
    """Round every matrix as serving does: groups of 32 along the inputs, each with the scale amax / 127."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                groups = parameter.view(parameter.shape[0], -1, 32)
                scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
                parameter.copy_(((groups / scale).round() * scale).view_as(parameter))


def reply(model, tokenizer, prompt: str, temperature: float) -> tuple[str, bool]:
    """The reply to a prompt, and whether the model ended it by itself."""
    inputs = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": 1.0, "top_k": 0} if temperature else {
        "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=256, **sampling)[0, inputs["input_ids"].shape[1]:].tolist()
    ended = out[-1] == tokenizer.eos_token_id
    return tokenizer.decode(out[:-1] if ended else out), ended


def evaluate(out: Path, seed: int, show: bool) -> dict[str, dict[str, float]]:
    """Answer all prompts with the written weights, exact and rounded, greedily and sampled."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    answers = [m["content"] for d in itertools.islice(dialogues(seed + 5, set()), 30000) for m in d if m["role"] == "assistant"]
    known_words = set(re.findall(r"[A-Za-z]+", " ".join([*answers, NO_SUMS])))
    results = {}
    for rounded in (False, True):
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, attn_implementation="eager").eval()
        if rounded:
            round_like_int8(model)
        for temperature in (0.0, 0.7):
            name = f"{'int8' if rounded else 'bf16'} {'greedy' if temperature == 0 else f'sampled at {temperature}'}"
            torch.manual_seed(seed)
            on_topic = ended = clean = 0
            for prompt, pattern in KNOWN + HELD_OUT:
                text, stopped = reply(model, tokenizer, prompt, temperature)
                hit = re.search(pattern, text) is not None
                words_ok = set(re.findall(r"[A-Za-z]+", text)) <= known_words
                on_topic, ended, clean = on_topic + hit, ended + stopped, clean + words_ok
                if show or not (hit and stopped and words_ok):
                    print(f"[{name}]{'' if hit else ' OFF TOPIC'}{'' if stopped else ' UNENDED'}{'' if words_ok else ' ODD WORDS'} {prompt!r} -> {text!r}", flush=True)
            total = len(KNOWN) + len(HELD_OUT)
            results[name] = {"prompts": total, "on_topic": on_topic, "ended": ended, "known_words_only": clean}
            print(name, results[name], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--eval", action="store_true", help="only evaluate the model in the output folder")
    parser.add_argument("--show", action="store_true", help="print every reply of the evaluation, not only the bad ones")
    parser.add_argument("--stage", type=int, default=0, help="begin with this stage; from 1 on, with the model in the output folder")
    parser.add_argument("--stages", type=int, default=3, help="the first stage and the finishing ones")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=600, help="steps of the first stage")
    parser.add_argument("--finish-steps", type=int, default=130, help="steps of each later stage")
    parser.add_argument("--draft", action="store_true", help="train the draft model of the model in the output folder")
    parser.add_argument("--draft-steps", type=int, default=1000, help="steps of the draft model")
    parser.add_argument("--batch-tokens", type=int, default=3072)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # A fixed number of threads, because sums over another number of parts round differently.
    torch.set_num_threads(args.threads)
    if args.draft:
        model, figures = distil(args)
        write_weights(model, args.out / "draft")
        print("draft", json.dumps(figures), flush=True)
        return
    if not args.eval:
        tokenizer = train_tokenizer(args.seed, 30000)
        for stage in range(args.stage, args.stages):
            model, figures = train(tokenizer, args, stage)
            write_model(model, tokenizer, args.out)
            print("stage", stage, json.dumps(figures), flush=True)
    evaluate(args.out, args.seed, args.show)


if __name__ == "__main__":
    main()
