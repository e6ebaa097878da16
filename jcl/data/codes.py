"""English names for the ISO codes of currencies and languages in `corpora.countries`."""

from __future__ import annotations


def _table(lines: str) -> dict[str, str]:
    return dict(entry.strip().split(" ", 1) for entry in lines.replace("\n", " ").split(","))


CURRENCIES = _table("""
AED United Arab Emirates dirham, AFN Afghan afghani, ALL Albanian lek, AMD Armenian dram,
AOA Angolan kwanza, ARS Argentine peso, AUD Australian dollar, AWG Aruban florin,
AZN Azerbaijani manat, BAM Bosnian convertible mark, BBD Barbadian dollar, BDT Bangladeshi taka,
BGN Bulgarian lev, BHD Bahraini dinar, BIF Burundian franc, BMD Bermudian dollar, BND Brunei dollar,
BOB Bolivian boliviano, BRL Brazilian real, BSD Bahamian dollar, BTN Bhutanese ngultrum,
BWP Botswana pula, BYR Belarusian ruble, BZD Belize dollar, CAD Canadian dollar,
CDF Congolese franc, CHF Swiss franc, CLP Chilean peso, CNY Chinese yuan, COP Colombian peso,
CRC Costa Rican colón, CUP Cuban peso, CVE Cape Verdean escudo, CZK Czech koruna,
DJF Djiboutian franc, DKK Danish krone, DOP Dominican peso, DZD Algerian dinar, EGP Egyptian pound,
ERN Eritrean nakfa, ETB Ethiopian birr, EUR euro, FJD Fijian dollar, FKP Falkland Islands pound,
GBP British pound, GEL Georgian lari, GHS Ghanaian cedi, GIP Gibraltar pound, GMD Gambian dalasi,
GNF Guinean franc, GTQ Guatemalan quetzal, GYD Guyanese dollar, HKD Hong Kong dollar,
HNL Honduran lempira, HRK Croatian kuna, HTG Haitian gourde, HUF Hungarian forint,
IDR Indonesian rupiah, ILS Israeli new shekel, INR Indian rupee, IQD Iraqi dinar, IRR Iranian rial,
ISK Icelandic króna, JMD Jamaican dollar, JOD Jordanian dinar, JPY Japanese yen,
KES Kenyan shilling, KGS Kyrgyzstani som, KHR Cambodian riel, KMF Comorian franc,
KPW North Korean won, KRW South Korean won, KWD Kuwaiti dinar, KYD Cayman Islands dollar,
KZT Kazakhstani tenge, LAK Lao kip, LBP Lebanese pound, LKR Sri Lankan rupee, LRD Liberian dollar,
LSL Lesotho loti, LYD Libyan dinar, MAD Moroccan dirham, MDL Moldovan leu, MGA Malagasy ariary,
MKD Macedonian denar, MMK Burmese kyat, MNT Mongolian tögrög, MOP Macanese pataca,
MRO Mauritanian ouguiya, MUR Mauritian rupee, MVR Maldivian rufiyaa, MWK Malawian kwacha,
MXN Mexican peso, MYR Malaysian ringgit, MZN Mozambican metical, NAD Namibian dollar,
NGN Nigerian naira, NIO Nicaraguan córdoba, NOK Norwegian krone, NPR Nepalese rupee,
NZD New Zealand dollar, OMR Omani rial, PAB Panamanian balboa, PEN Peruvian sol,
PGK Papua New Guinean kina, PHP Philippine peso, PKR Pakistani rupee, PLN Polish złoty,
PYG Paraguayan guaraní, QAR Qatari riyal, RON Romanian leu, RSD Serbian dinar, RUB Russian ruble,
RWF Rwandan franc, SAR Saudi riyal, SBD Solomon Islands dollar, SCR Seychellois rupee,
SDG Sudanese pound, SEK Swedish krona, SGD Singapore dollar, SHP Saint Helena pound,
SLL Sierra Leonean leone, SOS Somali shilling, SRD Surinamese dollar, SSP South Sudanese pound,
STD São Tomé and Príncipe dobra, SVC Salvadoran colón, SYP Syrian pound, SZL Swazi lilangeni,
THB Thai baht, TJS Tajikistani somoni, TMT Turkmenistani manat, TND Tunisian dinar,
TOP Tongan paʻanga, TRY Turkish lira, TTD Trinidad and Tobago dollar, TWD New Taiwan dollar,
TZS Tanzanian shilling, UAH Ukrainian hryvnia, UGX Ugandan shilling, USD United States dollar,
UYU Uruguayan peso, UZS Uzbekistani som, VEF Venezuelan bolívar, VND Vietnamese đồng,
VUV Vanuatu vatu, WST Samoan tālā, XAF Central African CFA franc, XCD East Caribbean dollar,
XOF West African CFA franc, XPF CFP franc, YER Yemeni rial, ZAR South African rand,
ZMK Zambian kwacha
""")
"""Names of currencies by ISO 4217 code, without funds and units of account."""

LANGUAGES = _table("""
af Afrikaans, am Amharic, ar Arabic, ay Aymara, az Azerbaijani, be Belarusian, bg Bulgarian,
bi Bislama, bn Bengali, bs Bosnian, ca Catalan, ch Chamorro, cnr Montenegrin, cs Czech, da Danish,
de German, dv Dhivehi, dz Dzongkha, el Greek, en English, es Spanish, et Estonian, fa Persian,
ff Fula, fi Finnish, fj Fijian, fo Faroese, fr French, ga Irish, gn Guaraní, gv Manx, he Hebrew,
hi Hindi, hr Croatian, ht Haitian Creole, hu Hungarian, hy Armenian, id Indonesian, is Icelandic,
it Italian, ja Japanese, ka Georgian, kg Kongo, kk Kazakh, kl Greenlandic, km Khmer, ko Korean,
ku Kurdish, ky Kyrgyz, la Latin, lb Luxembourgish, ln Lingala, lo Lao, lt Lithuanian, lu Luba,
lv Latvian, mg Malagasy, mh Marshallese, mi Māori, mk Macedonian, mn Mongolian, ms Malay,
mt Maltese, my Burmese, na Nauruan, nb Norwegian Bokmål, nd Ndebele, ne Nepali, nl Dutch,
nn Norwegian Nynorsk, no Norwegian, nr Southern Ndebele, ny Chichewa, oc Occitan, pa Punjabi,
pl Polish, ps Pashto, pt Portuguese, qu Quechua, rn Kirundi, ro Romanian, ru Russian,
rw Kinyarwanda, sg Sango, si Sinhala, sk Slovak, sl Slovene, sm Samoan, sn Shona, so Somali,
sq Albanian, sr Serbian, ss Swazi, st Sotho, sv Swedish, sw Swahili, ta Tamil, tg Tajik, th Thai,
ti Tigrinya, tk Turkmen, tn Tswana, to Tongan, tr Turkish, ts Tsonga, uk Ukrainian, ur Urdu,
uz Uzbek, ve Venda, vi Vietnamese, xh Xhosa, zh Chinese, zu Zulu
""")
"""Names of languages by ISO 639-1 code, and Montenegrin by its ISO 639-2 code."""
