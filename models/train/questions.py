"""Problems of a split as `secateur calibrate --data` reads them, a JSON object a line.

python questions.py hard --skip 1000 --count 60 > dev.jsonl
"""

import argparse
import json

import task


def main():
    a = argparse.ArgumentParser()
    a.add_argument("split")
    a.add_argument("--count", type=int, default=100)
    a.add_argument("--skip", type=int, default=0, help="begin so far into the split")
    args = a.parse_args()
    for p in task.split(args.split, args.skip + args.count)[args.skip :]:
        print(json.dumps({"question": p.text, "answer": p.answer}))


if __name__ == "__main__":
    main()
