"""Writes stories260K/golden.json: the greedy continuation of a prompt, by transformers in fp32 on a CPU.

    python make_stories.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent / "stories260K"
PROMPT = "Once upon a time"
COUNT = 100


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    prompt_ids = [tokenizer.bos_token_id] + tokenizer.encode(PROMPT, add_special_tokens=False)
    ids = list(prompt_ids)
    smallest_gap = float("inf")
    with torch.no_grad():
        # Without a cache, so that no error of a cache can hide in the reference.
        for _ in range(COUNT):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            first, second = logits.topk(2).values.tolist()
            smallest_gap = min(smallest_gap, first - second)
            ids.append(int(logits.argmax()))
    greedy = ids[len(prompt_ids):]
    golden = {"prompt": PROMPT, "input_ids": prompt_ids, "greedy_ids": greedy, "text": tokenizer.decode(greedy),
              "min_top1_top2_gap": smallest_gap}
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    print(golden)


if __name__ == "__main__":
    main()
