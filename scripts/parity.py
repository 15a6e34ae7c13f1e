"""Compare pgolf with reference numbers of the published scripts, one line a case.

Exit status: 0 all pass; 1 something differs; 2 there is nothing to compare; 3 nothing differs, but some cases are of a
kind that is not supported.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from pgolf.interop.parity.kinds import Result, case_files, check, find_tokenizer


def line(result: Result, width: int) -> str:
    """name, kind, error, tolerance, status, remarks."""
    outcome = result.outcome
    error, tolerance = (f"{outcome.max_error:.2e}", f"{outcome.tolerance:.1e}") if outcome else ("-", "-")
    columns = f"{result.name:{width}}  {result.kind:24}  {error:>9}  {tolerance:>9}  {result.status:11}"
    return f"{columns}  {'; '.join(result.remarks)}".rstrip()


def main() -> int:
    """Run the cases of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of .npz and .json reference cases")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only cases whose file name begins so")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="the published SentencePiece model")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    files = case_files(folder, arguments.only) if folder.is_dir() else []
    if not files:
        what = f"no case begins with {arguments.only!r} in" if arguments.only else "no reference cases in"
        print(f"parity: {what} {folder}.", file=sys.stderr)
        return 2
    if arguments.tokenizer is not None and not arguments.tokenizer.is_file():
        print(f"parity: there is no tokenizer model {arguments.tokenizer}.", file=sys.stderr)
        return 2
    tokenizer = arguments.tokenizer or find_tokenizer(folder.resolve())
    width = max(len(path.stem) for path in files)
    count: Counter[str] = Counter()
    for path in files:
        result = check(path, tokenizer)
        count[result.status] += 1
        print(line(result, width), flush=True)
    print(f"{len(files)} cases: {count['PASS']} pass, {count['FAIL']} fail, {count['UNSUPPORTED']} unsupported")
    return 1 if count["FAIL"] else 3 if count["UNSUPPORTED"] else 0


if __name__ == "__main__":
    sys.exit(main())
