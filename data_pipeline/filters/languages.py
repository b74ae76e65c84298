"""The languages that fastText's lid.176 tells apart, by the codes it gives them (ISO 639-1, else 639-3)."""

import difflib

_CODES = """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de
    diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo
    io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms
    mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn
    sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf
    yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())
NAMES = {
    "english": "en",
    "german": "de",
    "deutsch": "de",
    "french": "fr",
    "spanish": "es",
    "italian": "it",
    "portuguese": "pt",
    "dutch": "nl",
    "polish": "pl",
    "russian": "ru",
    "ukrainian": "uk",
    "chinese": "zh",
    "japanese": "ja",
    "korean": "ko",
    "arabic": "ar",
    "hindi": "hi",
    "turkish": "tr",
    "cn": "zh",
    "jp": "ja",
    "kr": "ko",
    "gr": "el",
    "ua": "uk",
    "cz": "cs",
    "eng": "en",
    "deu": "de",
    "zho": "zh",
}
"""What people write instead of a code."""


def nearest_language(code: str) -> str | None:
    """A hint for whoever wrote what is no code, None where nothing is near."""
    plain = code.strip().lower().replace("_", "-").partition("-")[0]
    meant = plain if plain in LANGUAGES else NAMES.get(plain)
    if meant is None and len(plain) > 3:
        meant = next((NAMES[name] for name in difflib.get_close_matches(plain, NAMES, n=1)), None)
    return f"did you mean '{meant}'?" if meant else None
