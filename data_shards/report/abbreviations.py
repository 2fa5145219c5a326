"""Words whose full stop does not end a sentence, in English, German, French and Spanish; lower case, without it."""

from __future__ import annotations

from .names import words

# Never the end of a sentence.
NEVER = words("""
    dr drs prof mr mrs ms st vs approx ca cf e.g i.e eg ie al fig figs tab resp incl excl prox dist bilat temp hx sx
    fx est sq vol seq eq ref refs rev dept appr circ diam corr esp viz z.b d.h u.a v.a o.g s.o s.u i.s i.d.r bzw ggf
    evtl inkl exkl vgl sog mind nr abb tbl fr frl dipl rer z.n st.p zw bes insb insbes ggü seitl dors ventr kran
    kaud anat aa vv nn lig proc gl rr geb tgl mme mmes mlle pr dre n° no.° env p.ex c.-à-d c.à.d éch sra srta sr dra
    dña aprox p.ej núm num pág ej fdo izqda hosp
""")
# Also how a sentence ends: they end one before a capital letter (and not before a number or a lower-case word).
MAY_END = words("""
    no nos max min med pt pts seg lt rt inf sup ant post lat etc hr hrs sec secs wk wks yr yrs mo mos jr rx tx dx wt
    ht usw pat ext int transv sag cor ax o.b i.v p.o a.m p.m m.d p.a a.p ph.d u.s i.m b.i.d subseg lob dcha dcho izq
    izda izdo der ud uds jan feb mar apr jun jul aug sep sept oct okt nov dec dez
""")
# "li. Unterlappen" goes on, "Erguss li. Herz normal." does not: told apart by the noun (a capital) before it.
SIDES = words("li re bds beids")
# Before a single capital letter these make it a class ("hepatitis C."), not somebody's initial.
CLASSES = words("""
    hepatitis type types grade class group stage zone vitamin influenza level category panel phase typ grad klasse
    gruppe stadium stade groupe classe tipo grado clase grupo estadio image view plan
""")
# Before a number these make it a name ("segment 4."), not the number of the next item of a list.
NUMBERED = words("""
    segment segments seg level levels no nr image images series slice slices rib ribs grade stage type class zone
    lobe figure fig case step number day days week weeks month months year years of to and or by x than
    approximately about segmente grad typ bild serie rippe stadium niveau num segmento grado tipo imagen coupe score
    birads bi-rads lirads li-rads rads lung-rads ti-rads pi-rads bosniak phase station
""")
# The part of them that can also stand before a measure.
AMOUNTS = words("of to and or by x than approximately about")
# Titles of a list: "Chest 1. ... 2. ... Abdomen 1. ..."
REGIONS = words("""
    chest abdomen pelvis kub head brain neck spine thorax shoulder hip knee wrist hand foot ankle elbow femur heart
    lungs impression findings conclusion kopf hals becken rachis tête cou tórax cabeza cuello
""")
MONTHS = words("""
    januar februar märz april mai juni juli august september oktober november dezember jänner
""")
# German number words with a full stop: "die 5. Rippe", "am 3. Tag".
ORDINAL_BEFORE = words("""
    am der die das dem den des im vom zum zur bis ab seit beim jeder jede rechte rechten linke linken rechts links
""")
GERMAN = words("""
    der die das und kein keine keinen mit im ist nicht ohne bei von auf nachweis zur zum des
""")
# A line that ends with one of these goes on in the next.
UNFINISHED = words("""
    a an the of in with and or to at by for from on is are was no not without und der die das den dem des mit im
    ohne kein keine von bei le la les un une du de et sans avec pas à au el los las sin con del al y en una dr prof
""")
