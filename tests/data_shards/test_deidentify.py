"""What `deidentify` masks and what it must leave: every person, number and place here is made up."""

from __future__ import annotations

import pytest

from data_shards.deidentify import Counts, deidentify
from data_shards.report import sentences


@pytest.mark.parametrize(
    ("text", "want"),
    [
        # people
        ("Discussed with Dr. Smith. The lungs", "Discussed with Dr. [NAME]. The lungs"),
        ("Seen by Dr J. R. Smith-Jones, Radiology.", "Seen by Dr [NAME], Radiology."),
        ("Dr. Mary Ann O'Brien's office was called.", "Dr. [NAME]'s office was called."),
        ("Drs. Smith and Prof. van der Berg agree.", "Drs. [NAME] and Prof. [NAME] agree."),
        ("DR. SMITH WAS NOTIFIED AT ONCE.", "DR. [NAME] WAS NOTIFIED AT ONCE."),
        ("Mrs. Miller and Mr. Jones", "Mrs. [NAME] and Mr. [NAME]"),
        ("Patient: Doe, John", "Patient: [NAME]"),
        ("Patient Name: JOHN Q. DOE\nSex: M", "Patient Name: [NAME]\nSex: M"),
        ("Dictated by: Jane Roe", "Dictated by: [NAME]"),
        ("Electronically signed by Jane Roe, MD", "Electronically signed by [NAME], MD"),
        ("PATIENT NAME: DOE, JANE A   ACCT: 998877", "PATIENT NAME: [NAME]   ACCT: [ID]"),
        (
            "Drs Roe and Poe; Dr Roe/Dr Poe; Pr Anne-Marie LEROY",
            "Drs [NAME] and [NAME]; Dr [NAME]/Dr [NAME]; Pr [NAME]",
        ),
        ("gez. Dr. med. A. Muster, Prof. Dr. med. B. Weiß", "gez. Dr. med. [NAME], Prof. Dr. med. [NAME]"),
        ("Technologist: Ann Roe   Room: 3", "Technologist: [NAME]   Room: 3"),
        ("**Patient** : Jean Dupont (54 ans)", "**Patient** : [NAME] (54 ans)"),
        ("**Patient Name:** Doe, John", "**Patient Name:** [NAME]"),
        ("**MRN:** 123456", "**MRN:** [ID]"),
        ("cc: Dr. Jane Roe\nReferring Physician: Roe", "cc: Dr. [NAME]\nReferring Physician: [NAME]"),
        ("Reviewed with Jane Roe, M.D., today", "Reviewed with [NAME], M.D., today"),
        ("Frau Müller und Herr Dr. med. Özdemir", "Frau [NAME] und Herr Dr. med. [NAME]"),
        ("Befundet von Dr. Hans von Berg", "Befundet von Dr. [NAME]"),
        ("Überweiser: Dr. Lüdenscheidt\nHerrn Groß", "Überweiser: Dr. [NAME]\nHerrn [NAME]"),
        ("M. Dupont et Mme Le Gall ont été vus", "M. [NAME] et Mme [NAME] ont été vus"),
        ("Signé par : Dr Hélène Besson", "Signé par : Dr [NAME]"),
        ("Nom : Besson\nPrénom : Hélène", "Nom : [NAME]\nPrénom : [NAME]"),
        ("El Sr. García López y la Dra. Núñez", "El Sr. [NAME] y la Dra. [NAME]"),
        ("Paciente: María de la Fuente\nFirmado por: J. Ruiz", "Paciente: [NAME]\nFirmado por: [NAME]"),
        ("PD Dr. Weiß, OA Dr. Muster, OA Prof. Weiß", "PD Dr. [NAME], OA Dr. [NAME], OA Prof. [NAME]"),
        ("Frau OA Dr. Muster, Herr PD Weiß", "Frau OA Dr. [NAME], Herr PD [NAME]"),
        ("Dr. Roe(555) 123-4567, Dr. Poe(555)123-4567", "Dr. [NAME][PHONE], Dr. [NAME][PHONE]"),
        ("Call 1-(555) 123-4567 or +1 (555) 123-4567", "Call [PHONE] or [PHONE]"),
        ("Dr. Linke, Dra. Izquierdo, Dr. Tse", "Dr. [NAME], Dra. [NAME], Dr. [NAME]"),
        # a vendor's name alone is somebody's
        ("Dr. Philips, performed by Anna Philips", "Dr. [NAME], performed by [NAME]"),
        ("Patient: Philips, Anna. Read by Philips. Dr. Ge", "Patient: [NAME]. Read by [NAME]. Dr. [NAME]"),
        # dates
        ("Series 3/4/2019, series of 3/4/19, image 2-3-2019", "Series [DATE], series of [DATE], image [DATE]"),
        ("series 3-4-12 and 3/5/19", "series 3-4-12 and [DATE]"),
        ("On 12/03/2019, 3/4/19 and 03-04-2019.", "On [DATE], [DATE] and [DATE]."),
        ("2020-03-01 and 2020/3/1 and 20200301", "[DATE] and [DATE] and [DATE]"),
        ("2020-03-01T10:15:00Z", "[DATE]"),
        ("March 3, 2020; March 3rd; 3 March 2020; Mar. 2020", "[DATE]; [DATE]; [DATE]; [DATE]"),
        ("12-Mar-2020, 12MAR2020, 3rd of May 2020", "[DATE], [DATE], [DATE]"),
        ("compared to CT from 3/14 and 03/2019", "compared to CT from [DATE] and [DATE]"),
        ("vom 03.02.2020, 3.2.2020 und 03.02.20", "vom [DATE], [DATE] und [DATE]"),
        ("am 3. März 2020, vom 12.03. und im Jänner 2019", "am [DATE], vom [DATE] und im [DATE]"),
        ("vom 3.2.20 und am 3.2., 6/7/2018-7/8/2018", "vom [DATE] und am [DATE], [DATE]-[DATE]"),
        ("le 3 février 2020, le 1er août, en déc. 2019", "le [DATE], le [DATE], en [DATE]"),
        ("el 3 de marzo de 2020, enero de 2019", "el [DATE], [DATE]"),
        ("DOB: 01/02/1950 (geb. 01.02.1950)", "DOB: [DATE] (geb. [DATE])"),
        # numbers
        ("Call 555-123-4567 or (555) 123-4567.", "Call [PHONE] or [PHONE]."),
        ("Tel: +49 30 1234567, Fax 030/123456", "Tel: [PHONE], Fax [PHONE]"),
        ("Tél. 01 23 45 67 89; Teléfono 912 345 678", "Tél. [PHONE]; Teléfono [PHONE]"),
        ("pager 12345, ext. 4567", "pager [PHONE], ext. [PHONE]"),
        ("MRN: 123456, MRN 00-12-34, Accession # A-123.45", "MRN: [ID], MRN [ID], Accession # [ID]"),
        ("Patient ID: AB12345; Patient no. 4711", "Patient ID: [ID]; Patient no. [ID]"),
        ("SSN 123-45-6789; 987-65-4321", "SSN [ID]; [ID]"),
        ("Fallnummer 471147, Patientennummer: 0815", "Fallnummer [ID], Patientennummer: [ID]"),
        ("IPP : 80012345; N° de dossier 1234; NHC: 99887", "IPP : [ID]; N° de dossier [ID]; NHC: [ID]"),
        ("NHC 123456, NIR 1 64 08 75 123 456 78", "NHC [ID], NIR [ID]"),
        ("UID 1.2.840.113619.2.55.3.1234; E1234567", "UID [ID]; [ID]"),
        ("Mail j.roe@clinic.example.org or https://x.example/y?z=1.", "Mail [EMAIL] or [URL]."),
        # addresses
        ("12 Main Street, Springfield, IL 62701", "[ADDRESS]"),
        ("Hauptstraße 12a, 10115 Berlin und Am Alten Weg", "[ADDRESS] und Am Alten Weg"),
        ("Am Ring 3, Lindenweg 5, 80331 München", "Am Ring 3, [ADDRESS]"),
        ("12 rue de la Paix, 75002 Paris", "[ADDRESS]"),
        ("Calle Mayor 12, 28013 Madrid", "[ADDRESS]"),
    ],
)
def test_identifiers_are_masked(text: str, want: str) -> None:
    masked, counts = deidentify(text)
    assert masked == want
    assert counts.total == want.count("[")
    assert deidentify(masked) == (masked, Counts())


TRAPS = """
The discs at L4-5, L5/S1, C3-4 and T12-L1 are normal; T1/T2 and T2* signal, M1/M2 segments.
A 2.5 x 3.1 cm mass, 12-15 mm, 10/12/14 mm, 1.2 x 3.4 x 5.6 cm, 12.03.20 mm, 12.5.3.
Gleason 3+4=7, PI-RADS 4/5, BI-RADS 4, Lung-RADS 4A, a 3/6 murmur, grade 2/3, score of 8/10.
Series 4/image 35, series 201 image 12/34, images 3-4-5, on 12/16 slices, 2D/3D, CT 3/4.
Series 3-4-12. series: 3-4-12, Image 3/4/12; images 2-3-12 to 3-4-12. Serie 3-4-12, Bilder Nr. 3-4-12.
Severe OA Right knee. OA Left hip, PD FSE. Coronal PD FSE, PD Fat-saturated and PD TSE. Moderate OA Knee.
Ms Lesion, Ms Lesions, MS. Left. MR. Right knee, Ms Right. Mr Coronal. Mr Sequences. Mr Arthrogram.
Performed by Siemens Scanner. performed by GE Healthcare. Performed by Philips Ingenia scanner. read by GE CT.
Hodgkin lymphoma, Baker's cyst, Bosniak II, Crohn disease, Hill-Sachs, Schmorl's nodes, Morgagni hernia.
HU -100 to 150, 1000-2000 HU, SUV 3.12, 120 kV, 350 mAs, DLP 1234.5, 100 mL Omnipaque 350, 370 MBq.
The upper 1/3 of the femur, du 1/3 moyen, le 2/3 inférieur, on 1/2 of the images, from 1/3 to 2/3.
No change since 2019. In 2020 the nodule was 5 mm. 65-year-old man, 24/7, 06/07 ribs.
MR angiography, MR. The MS plaques, PR interval, Ms lesion load. Mr and MR imaging.
It may 3 be; may represent; march fracture; on the august scale; second 5 mm cyst; dec 3 mm; mar 2.
Patient: supine. Patient rotated. Patient: Male. Name: unknown. Signed by Radiology. cc: none. Test Name: US
M. psoas links, M. Crohn, M. Hodgkin, N. ulnaris, A. carotis, V. cava, M. iliopsoas. Dr. will call.
Frau Kollegin, Herr Kollege. Am 3. Tag. Z. n. Fraktur. 5. Rippe rechts. 5.-7. Rippe. bis 12.5. am 5.7 cm
Segment 4a/b, LAD 50-70%, EF 55, 3/4 views, NIHSS 12, ASPECTS 8/10, Salter-Harris 2, AO 31-A2.1.
Nódulo de 3/4 partes. El 1/3 medio. Los días 3 y 4. Sr. y Sra.
M. pectoral. Le 1/3 moyen. Score calcique 1234. Mme. est vue. En fin 2019. fin 12345
Report number one. Unit dose 1234. Exam limited. Visit 3. Case of 12 nodules. MRN not given. Dossier 2.
tel: none. fax. extension 30 degrees. Ext. 12. Mobile 3 lesion. call at night. portable 1 view. No. 3 rib.
Seen by ___ on ___. [**Name**] on [**2118-1-3**]. Dr. XXXX at XXXX. Dr. ___ was told. <DATE> [DATE] [NAME].
The left main is 3 mm. Street drug use. Calle. Place of insertion 12. 3 Small Places. 2 Left Ribs.
Gallenweg 12 mm. Spring 2019. Ring 3. PR interval 200.
"""


@pytest.mark.parametrize("text", TRAPS.strip().splitlines())
def test_medical_text_is_left_alone(text: str) -> None:
    assert deidentify(text) == (text, Counts())


def test_what_the_caller_knows_is_masked_everywhere() -> None:
    text = "ID p-0042/7. DOE JOHN, Mr. Doe; john doe; John was well. A doe ran, Doern's sign, XP-0042/7."
    masked, counts = deidentify(text, known=["P-0042/7", "DOE^JOHN"])
    assert masked == "ID [ID]. [ID], Mr. [ID]; [ID]; [ID] was well. A doe ran, Doern's sign, XP-0042/7."
    assert counts == Counts(known=5)
    assert deidentify("12 of 12, 4711", known=["12", "", "47", "ab"]) == ("12 of 12, 4711", Counts())
    assert deidentify("Case P-77, L4-5", known=["P-77", "L4"])[0] == "Case [ID], L4-5"
    assert deidentify("Room 4711.", known=["4711", "4711 "])[0] == "Room [ID]."
    assert deidentify("a.b+c (x)", known=["a.b+c", "(x)"])[0] == "[ID] (x)"


def test_counts_add_up_and_read_well() -> None:
    one, two = deidentify("Dr. Smith, 3/4/2019, 3/5/2019")[1], deidentify("12 Main Street; Mr. Roe; Mrs. Roe")[1]
    assert one == Counts(name=1, date=2)
    total = sum([one, two], Counts())
    assert (total, total.total) == (Counts(name=3, date=2, address=1), 6)
    assert str(total) == "3 names, 2 dates, 1 address"
    assert str(Counts(address=2, known=2)) == "2 addresses, 2 known"
    assert str(Counts()) == "nothing"


def test_marks_survive_the_sentence_splitter() -> None:
    text = "Compared to CT of 3/4/2019. Dr. Smith was told on 12. März 2020. No change."
    masked, _ = deidentify(text)
    assert sentences(masked) == ["Compared to CT of [DATE].", "Dr. [NAME] was told on [DATE].", "No change."]
