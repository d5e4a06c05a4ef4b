"""Print the entropy of each kind of document of the synthetic shapes world: the floor of the text loss.

python experiments/scaling/entropy.py --tokenizer=runs/demo/tokenizer.model --num-image-tokens=4
"""

import argparse

from emu_jax.data.tokenizer import Tokenizer
from emu_jax.demo.world.entropy import KINDS, entropy_of


def main() -> None:
    """Print one row of a table for each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.model of the demo")
    parser.add_argument("--num-image-tokens", type=int, default=4, help="per image (default 4)")
    a = parser.parse_args()
    tokenizer = Tokenizer.load(a.tokenizer, instruct=True)
    print("| kind | nats per document | tokens per document | nats per token |\n| --- | --- | --- | --- |")
    for kind in KINDS:
        found = entropy_of(kind, tokenizer, num_image_tokens=a.num_image_tokens)
        tokens = f"{found.tokens:.2f} ± {found.tokens_error:.2f}"
        print(f"| {kind} | {found.nats:.4f} | {tokens} | {found.nats_per_token:.4f} |")


if __name__ == "__main__":
    main()
