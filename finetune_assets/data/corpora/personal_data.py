"""Personal data in text.

Polars finds, in Rust, the few texts that can hold a kind; only those are read by Python, where
checksums, number plans and what stands around a match decide.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import polars as pl
from phonenumbers import Leniency, PhoneMetadata, PhoneNumberMatcher
from stdnum import iban, luhn

from finetune_assets.errors import UserError

Spans = Iterator[tuple[int, int]]
"""Start and end of each match, in characters."""


@dataclass(frozen=True)
class Finding:
    """One piece of personal data; `start` and `end` are character offsets into the text."""

    kind: str
    start: int
    end: int


def find_personal_data(
    texts: pl.Series, kinds: Sequence[str], region: str | None
) -> dict[int, list[Finding]]:
    """Return findings by position of the text in the series, sorted by start and never overlapping.

    Texts without any are absent; null texts have none. `region` is the country, such as DE, whose
    national phone numbers are found too. UserError for one that has no number plan.
    """
    found: dict[int, list[Finding]] = {}
    for kind in _BY_PRECISION:
        if kind not in kinds:
            continue
        gate = _phone_gate(region) if kind == "phone" else _GATES[kind]
        positions = texts.str.contains(gate).fill_null(False).arg_true()
        for position, text in zip(positions, texts.gather(positions), strict=True):
            spans = _phones(text, region) if kind == "phone" else _FINDERS[kind](text)
            if findings := [Finding(kind, start, end) for start, end in spans]:
                found.setdefault(position, []).extend(findings)
    return {position: _without_overlap(found[position]) for position in sorted(found)}


def redact(text: str, findings: Sequence[Finding]) -> str:
    """Return the text with [EMAIL] and the like in place of findings, which must not overlap."""
    pieces, after = [], 0
    for finding in sorted(findings, key=lambda finding: finding.start):
        pieces += [text[after : finding.start], f"[{finding.kind.upper()}]"]
        after = finding.end
    return "".join([*pieces, text[after:]])


def _without_overlap(findings: Iterable[Finding]) -> list[Finding]:
    """Return the longer of two that overlap; of equal ones the more precise kind."""
    kept: list[Finding] = []
    for finding in sorted(findings, key=lambda finding: finding.start):
        if not kept or kept[-1].end <= finding.start:
            kept.append(finding)
        else:
            both = kept[-1], finding
            kept[-1] = max(both, key=lambda f: (f.end - f.start, -_BY_PRECISION.index(f.kind)))
    return kept


# Neighbours are compared in ASCII and Latin: no space parts a number from Chinese or Thai words.
_WORD = "0-9A-Za-z_"
_LATIN = "A-Za-zÀ-ÖØ-öø-ɏ"

_EMAIL = re.compile(
    rf"(?<![{_LATIN}0-9_.%+-])[.%+-]*+"
    rf"(?P<address>[{_LATIN}0-9_][{_LATIN}0-9_.%+-]{{0,63}}+"
    rf"@(?P<domain>[{_LATIN}0-9-]+(?:\.[{_LATIN}0-9-]+)*\.[A-Za-z]{{2,24}}))"
    rf"(?![{_LATIN}0-9_@]|[(\[])"
)
_FILE_ENDING = re.compile(
    r"\.(?:bz2|css|dll|exe|gif|gz|html|jpe?g|js|json|pdf|png|svg|tgz|webp)$", re.IGNORECASE
)


def _emails(text: str) -> Spans:
    for match in _EMAIL.finditer(text):
        # icon@2x.png is a file, x@self.weight a product of matrices, git@host:path a remote.
        is_code = match["domain"].startswith("self.") or match["address"].startswith("git@")
        if not is_code and not _FILE_ENDING.search(match["domain"]):
            yield match.span("address")


_IPV4 = re.compile(
    rf"(?<![{_WORD}.])\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![{_WORD}]|\.\d|-[A-Za-z])", re.ASCII
)
# Assigned addresses begin with four digits, unlike times, MAC addresses, slices and C++ names.
_IPV6 = re.compile(
    rf"(?<![{_WORD}.:])[0-9A-Fa-f]{{4}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}(?<!:)(?![{_WORD}:]|\.\d)",
    re.ASCII,
)
_BEFORE_VERSION = re.compile(
    r"(?:\b(?:version|ver|release|firmware|driver|build|section|chapter|clause)\W{0,5}"
    r"|§\s?|[=~<>]=\s?|[a-z0-9_][/-])\Z",
    re.IGNORECASE,
)


def _ip_addresses(text: str) -> Spans:
    for match in _IPV4.finditer(text):
        # Four single digits, as in 1.2.3.4, number sections and versions far more than hosts.
        numbered = len(match[0]) == 7 or match[0].startswith("0")
        before = text[max(0, match.start() - 20) : match.start()]
        if not numbered and not _BEFORE_VERSION.search(before) and _is_host(match[0]):
            yield match.span()
    for match in _IPV6.finditer(text):
        if sum(map(bool, match[0].split(":"))) >= 3 and _is_host(match[0]):
            yield match.span()


def _is_host(written: str) -> bool:
    """Return whether one machine can have the address, as masks, loopback and multicast cannot."""
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return False
    special = address.is_loopback or address.is_unspecified or address.is_multicast
    return not (special or address.is_reserved)


_IBAN = re.compile(
    rf"(?<![{_WORD}])[A-Z]{{2}}\d\d(?:[ \u00a0-]?[A-Z0-9]{{4}}){{2,7}}"
    rf"(?:[ \u00a0-]?[A-Z0-9]{{1,3}})?(?![{_WORD}])",
    re.ASCII,
)
_LAST_GROUP = re.compile(r"[ \u00a0-][A-Z0-9]+$")


def _ibans(text: str) -> Spans:
    for match in _IBAN.finditer(text):
        written = match[0]
        # A word in capitals may follow the number.
        while not iban.is_valid(written) and (last := _LAST_GROUP.search(written)):
            written = written[: last.start()]
        if iban.is_valid(written):
            yield match.start(), match.start() + len(written)


# As printed on cards (4-4-4-4, 4-6-5), so that sequences of numbers are none.
_CARD = re.compile(
    rf"(?<![{_WORD}.,*/^+$€£-])(?<!\d )"
    r"(?:\d{13,19}|\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{1,3})?"
    r"|\d{4}([ \u00a0-])\d{6}\2\d{4,5})"
    rf"(?![{_WORD}%*/^!-]|[.,]\d| \d)",
    re.ASCII,
)
# Prefixes and lengths: https://en.wikipedia.org/wiki/Payment_card_number
_ISSUER = re.compile(
    r"4(?:\d{15}|\d{18})"  # Visa, whose 13 digits are issued no more
    r"|(?:5[1-5]|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d+(?<=^.{16})"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:6011|64[4-9]|65|62|352[89]|35[3-8]\d)\d+(?<=^.{16})"  # Discover, UnionPay, JCB
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
)


def _credit_cards(text: str) -> Spans:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _ISSUER.fullmatch(digits) and luhn.is_valid(digits):
            yield match.span()


_API_KEY = re.compile(
    rf"(?<![{_WORD}-])(?:"
    r"A(?:KIA|SIA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"
    r"|sk-(?:(?:proj|svcacct|admin|ant|or)-[\w-]{20,}|[A-Za-z0-9]{20,})"  # OpenAI, Anthropic
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}"  # Slack
    r"|AIza[\w-]{35}"  # Google
    r"|[sr]k_live_[A-Za-z0-9]{16,}"  # Stripe
    r"|hf_[A-Za-z0-9]{30,}"  # Hugging Face
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"  # JSON web tokens
    rf")(?![{_WORD}])",
    re.ASCII,
)
# Up to its END line; of a block that was cut, the lines of base64. JSON writes \n for line breaks.
# Possessive only where nothing inside can backtrack: of a group that can, Python before 3.11.5
# finds nothing.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:(?!-----)[\s\S]){40,}-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:\s|\\[nr])*+(?:[A-Za-z0-9+/=]{40,}+(?:\s|\\[nr])*+)++)"
)


def _api_keys(text: str) -> Spans:
    for match in _API_KEY.finditer(text):
        # Words joined by hyphens and sk-xxxxxxxx have the shape of keys, but not their variety.
        if re.search(r"\d|[a-z][A-Z]", match[0]) and len(set(match[0])) >= 12:
            yield match.span()
    for match in _PRIVATE_KEY.finditer(text):
        yield match.start(), match.start() + len(match[0].rstrip())


_GAP = r"[\s().\-/~\u2010-\u2015\u2212]{0,4}"
_INTERNATIONAL = rf"[+＋]\(?\d(?:{_GAP}\d){{6}}"

_AFTER_PHONE = re.compile(rf"[{_WORD}@^%°!]|[.,:/-]\d|\s?[*=×·]")
_BEFORE_INTERNATIONAL = re.compile(rf"[{_WORD})\]}}^*]\Z")
_BEFORE_NATIONAL = re.compile(rf"[{_WORD}.,:=*/^\\$€£#+-]\Z|\d [+=*-] \Z")
# Decimals, differences, products, and the ten digits.
_CALCULATION = re.compile(r"0123456789|\d+\.\d+|\(?[1-9]\d*\)?\s[-−–/~]\s\d+\)?|\d+\(.*")


def _phones(text: str, region: str | None) -> Spans:
    # The matcher tries every number of a text, so it is given long ones alone.
    for stretch in re.finditer(f"(?:{_phone_gate(region)})(?:{_GAP}\\d)*+", text):
        for match in PhoneNumberMatcher(stretch[0], region, Leniency.VALID):
            start, end = stretch.start() + match.start, stretch.start() + match.end
            if _stands_alone(text, start, end):
                yield start, end


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether the number is as long as a phone number, and no part of a sum or a word."""
    written = text[start:end]
    if sum(map(str.isdecimal, written)) < 7 or _AFTER_PHONE.match(text, end):
        return False
    before = text[max(0, start - 4) : start]
    if written.lstrip("([")[0] in "+＋":
        return not _BEFORE_INTERNATIONAL.search(before)
    return not (_BEFORE_NATIONAL.search(before) or _CALCULATION.fullmatch(written))


@cache
def _phone_gate(region: str | None) -> str:
    """Return how a phone number begins, for Rust and for Python."""
    if region is None:
        return _INTERNATIONAL
    plan = PhoneMetadata.metadata_for_region(region)
    if plan is None or plan.general_desc is None:
        cause = f"{region} is no country with a plan of phone numbers"
        remedy = "write its ISO 3166 code, such as DE or US, or leave it out"
        raise UserError("cleaning.personal_data.region", cause, remedy)
    # Where national numbers begin with 0, others are prices, years or results.
    first = "0" if plan.national_prefix == "0" else r"\d"
    more = max(7, min(plan.general_desc.possible_length)) - 1
    return rf"{_INTERNATIONAL}|\(?{first}(?:{_GAP}\d){{{more}}}"


_FINDERS: dict[str, Callable[[str], Spans]] = {
    "email": _emails,
    "ip_address": _ip_addresses,
    "iban": _ibans,
    "credit_card": _credit_cards,
    "api_key": _api_keys,
}
_BY_PRECISION = ["api_key", "iban", "credit_card", "email", "ip_address", "phone"]

# What every text with the kind contains, in Rust's syntax, which has no look-around.
_GATES = {
    "email": r"[^\s@]@[^\s@.]+\.[^\s@]",
    "ip_address": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]{4}:[0-9A-Fa-f]{0,4}:",
    "iban": r"[A-Z]{2}[0-9]{2}[ \x{a0}-]?[A-Z0-9]{4}[ \x{a0}-]?[A-Z0-9]{4}",
    "credit_card": r"[0-9]{13}|[0-9]{4}[ \x{a0}-](?:[0-9]{4}[ \x{a0}-][0-9]{4}[ \x{a0}-][0-9]"
    r"|[0-9]{6}[ \x{a0}-][0-9]{4})",
    "api_key": r"A(?:KIA|SIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_|sk-[A-Za-z0-9]"
    r"|xox[abeoprs]-|AIza[A-Za-z0-9_-]{35}|[sr]k_live_|hf_[A-Za-z0-9]{30}|eyJ|PRIVATE KEY",
}
