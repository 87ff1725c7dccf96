"""vLLM's side of `engine`: reads one JSON object from standard input, prints one. It runs in vLLM's own environment."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main() -> None:
    asked = json.load(sys.stdin)
    began = time.perf_counter()
    llm = LLM(
        asked["base"],
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=asked["rank"],
        max_loras=1,
        skip_tokenizer_init=True,
        max_model_len=max(map(len, asked["prompts"])) + asked["length"],
        generation_config="vllm",
        disable_log_stats=True,
    )
    told: dict[str, Any] = {"load_s": round(time.perf_counter() - began, 2)}
    prompts = [{"prompt_token_ids": ids} for ids in asked["prompts"]]

    def answers(update: int, temperature: float) -> tuple[list[list[int]], list[list[float]]]:
        """The tokens of each answer and their log-probabilities; each update's adapter is a new one to vLLM."""
        each = [
            SamplingParams(
                temperature=temperature,
                max_tokens=asked["length"],
                seed=1000 * update + i,
                logprobs=0,
                detokenize=False,
                stop_token_ids=asked["ends"],
            )
            for i in range(len(prompts))
        ]
        request = LoRARequest(f"update-{update}", update, asked["adapter"])
        outputs = [row.outputs[0] for row in llm.generate(prompts, each, lora_request=request, use_tqdm=False)]
        tokens = [list(row.token_ids) for row in outputs]
        return tokens, [
            [step[token].logprob for token, step in zip(row.token_ids, row.logprobs, strict=True)] for row in outputs
        ]

    for update in range(1, asked["updates"] + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        llm.llm_engine.add_lora(LoRARequest(f"update-{update}", update, asked["adapter"]))
        told["adapter_s"] = round(time.perf_counter() - wall, 3)
        told["drawn"], told["logprobs"] = answers(update, 1.0)
        told["cpu_s"], told["wall_s"] = time.process_time() - cpu, time.perf_counter() - wall
    told["greedy"], _ = answers(asked["updates"], 0.0)
    status = Path("/proc/self/status").read_text()
    told["peak_gib"] = round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
