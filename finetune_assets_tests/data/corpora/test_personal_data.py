"""Personal data is found and redacted; mathematics, code and versions are left alone."""

import re
from typing import get_args

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_assets.catalog.cleaning import PersonalDataKind
from finetune_assets.data.corpora.personal_data import Finding, find_personal_data, redact
from finetune_assets.errors import UserError

KINDS = get_args(PersonalDataKind)
BASE64 = "MIIEowIBAAKCAQEAu1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gun"


def key(prefix: str, length: int) -> str:
    """Written in two parts, as scanners of repositories look for such keys too."""
    return prefix + ("aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0z" * 3)[:length]


PERSONAL = [
    ("email", "jane.doe+news@mail.uni-bonn.de"),
    ("email", "jörg@müller.de"),
    ("phone", "+49 30 901820"),
    ("phone", "+1 (202) 456-1111"),
    ("phone", "+442079460018"),
    ("ip_address", "84.12.33.7"),
    ("ip_address", "192.168.178.20"),
    ("ip_address", "2a00:1450:4001:81b::200e"),
    ("ip_address", "2001:0db8:85a3:0000:0000:8a2e:0370:7334"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB29NWBK60161331926819"),
    ("iban", "AT61 1904 3002 3457 3201"),
    ("credit_card", "4111 1111 1111 1111"),
    ("credit_card", "5555-5555-5555-4444"),
    ("credit_card", "378282246310005"),
    ("credit_card", "3782 822463 10005"),
    ("credit_card", "2223003122003222"),
    ("api_key", key("AKIA", 0) + "IOSFODNN7EXAMPLE"),
    ("api_key", key("ghp_", 36)),
    ("api_key", key("gho_", 36)),
    ("api_key", key("ghs_", 36)),
    ("api_key", key("github_pat_", 82)),
    ("api_key", key("sk-", 48)),
    ("api_key", key("sk-proj-", 60)),
    ("api_key", key("sk-ant-api03-", 80)),
    ("api_key", key("xoxb-123456789012-", 24)),
    ("api_key", key("AIza", 35)),
    ("api_key", key("sk_live_", 24)),
    ("api_key", key("rk_live_", 24)),
    ("api_key", key("hf_", 34)),
    ("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + key("", 43)),
    ("api_key", f"-----BEGIN PRIVATE KEY-----\n{BASE64}\n-----END PRIVATE KEY-----"),
    ("api_key", f"-----BEGIN RSA PRIVATE KEY-----\\n{BASE64}\\n-----END RSA PRIVATE KEY-----"),
    ("api_key", f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BASE64}\n{BASE64}"),
]


@pytest.mark.parametrize(("kind", "written"), PERSONAL)
@pytest.mark.parametrize("around", ["{}", "It is {}.", "({})", "值{}。", "id: {}\nNEXT", "'{}', "])
def test_each_kind_is_found_and_redacted(kind: str, written: str, around: str) -> None:
    text = around.format(written)
    start = text.index(written)
    findings = find_personal_data(pl.Series([text]), KINDS, None)
    assert findings == {0: [Finding(kind, start, start + len(written))]}
    assert redact(text, findings[0]) == around.format(f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "@property\ndef norm(self): return self.x @ self.y.T + x@self.weight",
        "icon@2x.png, react@18.2.0, git@github.com:owner/repository.git, @staticmethod",
        "pi is 3.14159265358979323846 and e is 2.718281828459045",
        "6.283185307",
        "digits = '0123456789'",
        "20! = 2432902008176640000 and 2^64 = 18446744073709551616",
        "223905 - 1858 = 222047; $60(3491) - 3600$; x + 49301234567; 5+49301234567",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16",
        "4111 1111 1111 1112 fails its checksum, 9111111111111111 has no issuer",
        "2024-02-29T12:34:56.789012+00:00, 2024-02-29 12:34:56, 29/02/2024, 20240229123456",
        "timestamps 1709210096, 1709210096123 and 1709210096123456",
        "550e8400-e29b-41d4-a716-446655440000 and d41d8cd98f00b204e9800998ecf8427e",
        "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        "torch 2.13.0, 1.2.3.4.5, v10.20.30.40, version 10.20.30.40, Edge/12.0.60.109, ==1.2.13.4",
        "127.0.0.1, 0.0.0.0, ::1, ::, 255.255.255.0, 256.300.1.2, Section 1.2.3.4",
        "std::vector, a::b, face::bad, x[1::2], 10:20:30, 00:1a:2b:3c:4d:5e, dead::beef",
        "DE89 3704 0044 0532 0130 01, XDE89370400440532013000, DE89370400440532013000X",
        "sk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx, risk-management-of-long-term-investments",
        "sk-folding-cube-of-twenty, hf_model_name_with_many_parts_in_it_for_trainers",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "-----BEGIN PUBLIC KEY-----\n" + BASE64 + "\n-----END PUBLIC KEY-----",
    ],
)
@pytest.mark.parametrize("region", [None, "DE", "FR", "US"])
def test_mathematics_code_and_versions_are_not_personal(text: str, region: str | None) -> None:
    assert find_personal_data(pl.Series([text]), KINDS, region) == {}


@pytest.mark.parametrize(
    ("written", "region"),
    [
        ("030 901820", "DE"),
        ("0171/1234567", "DE"),
        ("(202) 456-1111", "US"),
        ("202.456.1111", "US"),
        ("01 42 68 53 00", "FR"),
        ("912 345 678", "ES"),
    ],
)
def test_national_numbers_are_found_in_their_region_alone(written: str, region: str) -> None:
    texts = pl.Series([f"Call {written} today, or tomorrow."])
    assert find_personal_data(texts, KINDS, region) == {0: [Finding("phone", 5, 5 + len(written))]}
    assert find_personal_data(texts, KINDS, None) == {}


@pytest.mark.parametrize("gap", ["\n", ", ", " / ", "; "])
@pytest.mark.parametrize(
    ("written", "region"),
    [("+49 30 901820", None), ("030 901820", "DE"), ("202-456-1111", "US")],
)
def test_every_number_of_a_list_is_found(written: str, region: str | None, gap: str) -> None:
    text = gap.join([written] * 5)
    findings = find_personal_data(pl.Series([text]), ["phone"], region)[0]
    assert redact(text, findings) == gap.join(["[PHONE]"] * 5)


def test_a_region_without_numbers_is_an_error() -> None:
    with pytest.raises(UserError, match="XX is no country"):
        find_personal_data(pl.Series(["text"]), ["phone"], "XX")


def test_several_findings_are_sorted_and_do_not_overlap() -> None:
    card, iban = "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00"
    text = f"a@b.org, {iban}, +49 30 901820, {card}, 84.12.33.7, c@d.org"
    [findings] = find_personal_data(pl.Series([text]), KINDS, "US").values()
    assert redact(text, findings) == (
        "[EMAIL], [IBAN], [PHONE], [CREDIT_CARD], [IP_ADDRESS], [EMAIL]"
    )
    assert findings == sorted(findings, key=lambda finding: finding.start)


def test_the_longer_of_two_that_overlap_is_kept() -> None:
    token = key("ghp_", 36)
    text = f"https://{token}@github.com/x"
    assert find_personal_data(pl.Series([text]), ["email"], None) == {
        0: [Finding("email", 8, 8 + len(token) + len("@github.com"))]
    }
    assert [f.kind for f in find_personal_data(pl.Series([text]), KINDS, None)[0]] == ["email"]
    assert token not in redact(text, find_personal_data(pl.Series([text]), KINDS, None)[0])


def test_only_the_kinds_asked_for_are_found() -> None:
    texts = pl.Series([written for _, written in PERSONAL])
    for kind in KINDS:
        expected = [position for position, (k, _) in enumerate(PERSONAL) if k == kind]
        found = find_personal_data(texts, [kind], None)
        assert list(found) == expected
        assert {f.kind for findings in found.values() for f in findings} == {kind}
    assert find_personal_data(texts, [], None) == {}


def test_nulls_and_clean_texts_are_absent() -> None:
    texts = pl.Series([None, "nothing", "a@b.org", None, ""], dtype=pl.String)
    assert find_personal_data(texts, KINDS, None) == {2: [Finding("email", 0, 7)]}
    assert find_personal_data(pl.Series([], dtype=pl.String), KINDS, "DE") == {}


TEXTS = st.lists(
    st.one_of(
        st.text(),
        st.text("0123456789+-.,:()/ @aAfF\n\\", max_size=60),
        st.sampled_from([written for _, written in PERSONAL]),
        st.from_regex(r"[+(]?[0-9]{1,4}([ .:-]?[0-9a-f]{1,4}){1,8}", fullmatch=True),
    ),
    max_size=6,
).map("".join)


@given(TEXTS, st.sampled_from([None, "DE", "US", "FR"]))
def test_redaction_leaves_everything_else_untouched(text: str, region: str | None) -> None:
    findings = find_personal_data(pl.Series([text]), KINDS, region).get(0, [])
    ends = [0, *(finding.end for finding in findings)]
    starts = [*(finding.start for finding in findings), len(text)]
    kept = [text[end:start] for end, start in zip(ends, starts, strict=True)]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))
    assert all(finding.start < finding.end for finding in findings)
    pattern = r"\[[A-Z_]+\]".join(map(re.escape, kept))
    assert re.fullmatch(pattern, redact(text, findings))
