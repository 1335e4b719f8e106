"""The page of the claims is the one that the claims make."""

from __future__ import annotations

from theory.claims import CLAIMS
from theory.claims.page import PAGE, page
from theory.claims.rational import CLAIMS as RATIONAL


def test_the_page_is_what_the_claims_make():
    text = page()
    assert PAGE.read_text() == text, "run: python -m theory.claims.page"
    for claim in (*CLAIMS, *RATIONAL):
        for broken in claim.broken:
            assert f"(twins/{claim.name}/{broken.name}.json)" in text
    assert "nan" not in text.split()
