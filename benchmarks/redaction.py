"""Precision and recall of the redaction: `python -m benchmarks.redaction`."""

from collections import Counter

from stateset_agents.traces.redaction import personal
from tests.redaction_set import harmless_strings, personal_strings


def main() -> None:
    harmless = list(harmless_strings())
    flagged = [(text, hits) for text in harmless if (hits := personal(text))]
    total, seen, missed = Counter[str](), Counter[str](), list[tuple[str, str]]()
    for kind, part, text in personal_strings():
        total[kind] += 1
        if any(part.strip(".") in hit or hit in part for _, hit in personal(text)):
            seen[kind] += 1
        else:
            missed.append((kind, text))
    print(
        f"harmless: {len(flagged)} of {len(harmless)} flagged ({len(flagged) / len(harmless):.2%})"
    )
    for kind in total:
        print(f"{kind:<8} {seen[kind]} of {total[kind]} found ({seen[kind] / total[kind]:.1%})")
    print(f"in all   {seen.total() / total.total():.1%}")
    for text, hits in flagged[:40]:
        print("  flagged", hits, text)
    for kind, text in missed[:60]:
        print("  missed ", kind, text)


if __name__ == "__main__":
    main()
