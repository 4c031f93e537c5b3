"""Words that are not a part of names."""

_BEFORE_NAMES = """
a an the this that our your their my his her its we i you they all any no new each both other another some
hi hello dear thanks thank please fyi re fwd fw from to at by for with via per and or of in on as is was
carrier shipper consignee broker customer vendor payee driver dispatch attn contact company bill ship sold remit
air ocean ltl ftl tl inbound outbound total base line freight ground collect prepaid third party intermodal rail
dry reefer flatbed truck truckload motor common contract private federal parcel standard next day rate sea
when where what who which how did does has have had will can could should would if but so then
call email tell ask paid pay load loads shipment invoice regards best sincerely signed
monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
september october november december today yesterday tomorrow pickup delivery origin destination near
"""
_OF_PLACEHOLDERS = """
tbd tba tbc na none unknown pending various multiple same as above below see attached
accounts payable receivable department dept shipping receiving purchasing billing office desk team manager
"""
_OF_QUERIES = """
a an the of to in on at by for from with and or is are was were be been do does did has have had what when where
who whom which why how many much any all about between since until before after during last next this that these
those it its we our us i me my you your they them their he she his her show find list give tell get latest recent
status update eta load loads shipment shipments invoice invoices truck trucks carrier carriers email emails
please can could would should will not no yes there here than then today yesterday tomorrow week month year
"""

NOT_NAMES = frozenset(_BEFORE_NAMES.split())
"""Words that stand before a name in a text, or form a common phrase with its last word (`Air Freight`)."""
NOT_PARTIES = NOT_NAMES | frozenset(_OF_PLACEHOLDERS.split())
"""Words that stand where a party's name should (`Carrier: TBD`, `Attn: Accounts Payable`), beside those of `NOT_NAMES`."""
NOT_AT_EDGE = frozenset(_OF_QUERIES.split())
"""Words with which a name in a query neither starts nor ends."""
