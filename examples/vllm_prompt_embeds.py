"""Answer from a compressed document with vLLM, which reads a context as prompt embeddings (not tried against a server).

pip install vllm
python examples/vllm_prompt_embeds.py book.txt "Who is the captain?"
"""

import sys
from pathlib import Path

import gistnet

text, question = Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]
teacher = gistnet.Teacher.from_pretrained("smollm2-135m")
encoder = gistnet.GistEncoder(teacher, gistnet.GistNet.from_pretrained("smollm2-135m", teacher))
document = gistnet.compress(text, encoder)
plan = gistnet.default_plan(document.n_tokens, document.branchings, budget=1024)
after = teacher.tokenizer.encode(f"\n\n{question}\n", continued=True).tolist()
# vLLM numbers vectors without gaps, so only contexts of the policy "compact" are read as they were meant.
context = gistnet.assemble(document, plan, teacher, positions="compact", after=after)

if __name__ == "__main__":
    from vllm import LLM

    # `vllm serve MODEL --enable-prompt-embeds` takes the same tensor, written by `torch.save` and in base64.
    llm = LLM(model=teacher.model.name_or_path, enable_prompt_embeds=True)
    print(llm.generate({"prompt_embeds": context.inputs_embeds[0].cpu()})[0].outputs[0].text)
