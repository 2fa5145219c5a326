"""The sentences of phantom reports: what training text is made of.

{side}/{Side}: left or right. {size}: whole mm. {grade}/{Grade}: a severity word. One sentence is about one finding, so
that a label never hides in a sentence about another. The prompts used for zero-shot scoring live in
eval_zero_shot/tasks/phantom.yaml: none of them may occur here as a sentence, all of their words must (tested).
"""

from __future__ import annotations

from dataclasses import dataclass

ORGANS = ("lungs", "pleura", "heart", "vessels", "liver", "spleen", "kidneys", "peritoneum")


# Radiologists have stock phrases: the first of a list is said about half the time, the last rarely.
HABIT = (0.5, 0.18, 0.12, 0.08, 0.07, 0.05)


@dataclass(frozen=True)
class Phrases:
    organ: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    impression: tuple[str, ...]
    several: tuple[str, ...] = ()  # used when more than one lesion is there


PHRASES: dict[str, Phrases] = {
    "nodule": Phrases(
        "lungs",
        positive=(
            "A solid pulmonary nodule is present on the {side}.",
            "There is a {size} mm nodule in the {side} lung.",
            "A solid {size} mm nodule is seen in the {side} lung.",
            "{Side} lung nodule measuring {size} mm.",
            "The {side} lung contains a solid nodule of {size} mm.",
            "Solid {side} pulmonary nodule, {size} mm.",
        ),
        negative=(
            "No nodule is seen in the {side} lung.",
            "There is no nodule in the {side} lung.",
            "The {side} lung is free of nodules.",
            "No pulmonary nodule on the {side}.",
            "No suspicious {side} lung nodule.",
            "The {side} lung shows no solid nodule.",
        ),
        impression=(
            "{Side} pulmonary nodule.",
            "Solid {side} lung nodule, {size} mm.",
            "Nodule of the {side} lung, follow-up advised.",
        ),
        several=(
            "Several nodules are seen in the {side} lung, the largest {size} mm.",
            "Multiple solid nodules in the {side} lung, up to {size} mm.",
        ),
    ),
    "effusion": Phrases(
        "pleura",
        positive=(
            "The {side} pleural space contains fluid.",
            "There is a {grade} {side} pleural effusion.",
            "{Grade} {side} pleural effusion.",
            "A {grade} pleural effusion is seen on the {side}.",
            "Pleural fluid is present on the {side}.",
            "{Grade} amount of pleural fluid on the {side}.",
        ),
        negative=(
            "No {side} pleural effusion.",
            "There is no pleural effusion on the {side}.",
            "No pleural fluid is seen on the {side}.",
            "The {side} pleural space is clear.",
            "The {side} pleural space is free of fluid.",
            "No effusion in the {side} pleural space.",
        ),
        impression=(
            "{Side} pleural fluid collection.",
            "{Grade} {side} effusion.",
            "{Side} pleural effusion, {grade}.",
        ),
    ),
    "cardiomegaly": Phrases(
        "heart",
        positive=(
            "The heart is enlarged.",
            "There is {grade} cardiomegaly.",
            "{Grade} enlargement of the heart.",
            "The cardiac silhouette is enlarged.",
            "Cardiomegaly is present.",
            "The heart size is increased.",
        ),
        negative=(
            "The heart is normal in size.",
            "Heart size is normal.",
            "There is no cardiomegaly.",
            "The cardiac silhouette is normal.",
            "The heart is not enlarged.",
            "No enlargement of the heart.",
        ),
        impression=("Cardiomegaly.", "{Grade} cardiomegaly.", "Enlarged heart."),
    ),
    "emphysema": Phrases(
        "lungs",
        positive=(
            "Emphysema is seen throughout the lungs.",
            "There is {grade} emphysema in both lungs.",
            "{Grade} centrilobular emphysema.",
            "Diffuse emphysematous changes of the lungs.",
            "The lungs show {grade} emphysema.",
            "Emphysematous destruction of the lungs is present.",
        ),
        negative=(
            "No emphysema.",
            "There is no emphysema in the lungs.",
            "The lungs show no emphysema.",
            "No emphysematous changes are seen.",
            "No centrilobular emphysema is seen.",
            "Lung attenuation is normal without emphysema.",
        ),
        impression=("Pulmonary emphysema.", "{Grade} emphysema.", "Emphysematous lung disease."),
    ),
    "aortic_calcification": Phrases(
        "vessels",
        positive=(
            "There are calcified plaques in the aorta.",
            "Calcification of the aortic wall is seen.",
            "The aorta shows wall calcification.",
            "Aortic calcifications are present.",
            "Calcified atherosclerosis of the aorta.",
            "Atherosclerotic calcification along the aorta.",
        ),
        negative=(
            "No aortic calcification.",
            "There is no calcification of the aorta.",
            "The aorta shows no calcified plaques.",
            "The aortic wall is free of calcification.",
            "No calcified plaques are seen in the aorta.",
            "No atherosclerotic changes of the aorta.",
        ),
        impression=(
            "Aortic atherosclerosis with calcification.",
            "Calcified aorta.",
            "Atherosclerotic aortic plaques.",
        ),
    ),
    "hepatic_cyst": Phrases(
        "liver",
        positive=(
            "A cyst is present in the liver.",
            "There is a {size} mm cyst in the liver.",
            "A simple hepatic cyst measures {size} mm.",
            "A liver cyst of {size} mm is seen.",
            "Hepatic cyst, {size} mm.",
            "The liver contains a simple cyst.",
        ),
        negative=(
            "No hepatic cyst.",
            "There is no cyst in the liver.",
            "The liver is free of cysts.",
            "No liver cyst is seen.",
            "The liver contains no cyst.",
            "No cystic lesion of the liver.",
        ),
        impression=("Simple liver cyst.", "Hepatic cyst of {size} mm.", "Benign hepatic cyst."),
        several=("Several hepatic cysts, the largest {size} mm.", "Multiple liver cysts up to {size} mm."),
    ),
    "hepatic_steatosis": Phrases(
        "liver",
        positive=(
            "There is hepatic steatosis.",
            "Fatty infiltration of the liver.",
            "Decreased liver attenuation indicates steatosis.",
            "The liver is fatty.",
            "Diffuse fatty change of the liver is seen.",
            "Steatosis of the liver is present.",
        ),
        negative=(
            "No hepatic steatosis.",
            "There is no fatty infiltration of the liver.",
            "Liver attenuation is normal.",
            "The liver shows no steatosis.",
            "No fatty change of the liver.",
            "The liver has normal attenuation without steatosis.",
        ),
        impression=("Fatty liver.", "Hepatic steatosis.", "Diffuse steatosis of the liver."),
    ),
    "splenomegaly": Phrases(
        "spleen",
        positive=(
            "The spleen is enlarged.",
            "There is splenomegaly.",
            "Enlarged spleen of {size} mm.",
            "Splenomegaly is present, the spleen measures {size} mm.",
            "Enlargement of the spleen is seen.",
            "The spleen size is increased.",
        ),
        negative=(
            "The spleen is normal in size.",
            "Spleen size is normal.",
            "There is no splenomegaly.",
            "The spleen is not enlarged.",
            "No enlargement of the spleen.",
            "Normal spleen of {size} mm.",
        ),
        impression=("Splenomegaly.", "Enlarged spleen.", "Splenomegaly, {size} mm."),
    ),
    "renal_stone": Phrases(
        "kidneys",
        positive=(
            "The {side} kidney contains a stone.",
            "There is a {size} mm stone in the {side} kidney.",
            "{Side} renal stone measuring {size} mm.",
            "A {size} mm calculus is seen in the {side} kidney.",
            "{Side} kidney stone of {size} mm.",
            "A renal calculus is present on the {side}.",
        ),
        negative=(
            "No stone in the {side} kidney.",
            "There is no {side} renal stone.",
            "The {side} kidney is free of stones.",
            "No {side} renal calculus.",
            "The {side} kidney contains no calculus.",
            "No renal stone is seen on the {side}.",
        ),
        impression=(
            "{Side} nephrolithiasis.",
            "{Side} renal calculus, {size} mm.",
            "Stone in the {side} kidney, {size} mm.",
        ),
        several=(
            "Several stones in the {side} kidney, the largest {size} mm.",
            "Multiple {side} renal stones up to {size} mm.",
        ),
    ),
    "hydronephrosis": Phrases(
        "kidneys",
        positive=(
            "Hydronephrosis is present on the {side}.",
            "There is {grade} hydronephrosis.",
            "{Grade} {side} hydronephrosis.",
            "The {side} renal pelvis is dilated.",
            "Dilated collecting system of the {side} kidney.",
            "{Grade} dilatation of the renal pelvis.",
        ),
        negative=(
            "No hydronephrosis.",
            "There is no hydronephrosis on either side.",
            "The renal collecting system is not dilated.",
            "No dilatation of the renal pelvis.",
            "The renal pelvis is normal without hydronephrosis.",
            "Hydronephrosis is not seen.",
        ),
        impression=("{Side} hydronephrosis.", "Hydronephrosis, {grade}.", "Obstructed {side} collecting system."),
    ),
    "ascites": Phrases(
        "peritoneum",
        positive=(
            "Ascites is present.",
            "There is {grade} ascites.",
            "{Grade} amount of ascites in the abdomen.",
            "Free fluid is seen in the abdomen.",
            "The abdomen contains free fluid.",
            "{Grade} free peritoneal fluid.",
        ),
        negative=(
            "No ascites.",
            "There is no free fluid in the abdomen.",
            "No ascites is seen in the abdomen.",
            "No free peritoneal fluid.",
            "The peritoneal cavity is free of fluid.",
            "The abdomen shows no ascites.",
        ),
        impression=("Free abdominal fluid.", "{Grade} ascites.", "Ascites in the abdomen, {grade}."),
    ),
}
GRADES = {
    "effusion": ("small", "moderate", "large"),
    "ascites": ("small", "moderate", "large"),
    "cardiomegaly": ("mild", "moderate", "marked"),
    "emphysema": ("mild", "moderate", "severe"),
    "hydronephrosis": ("mild", "moderate", "severe"),
}
# Lower bounds of the second and third grade, in the unit of Scene.sizes.
GRADE_STEPS = {
    "effusion": (29.0, 41.0),
    "ascites": (10.5, 14.5),
    "cardiomegaly": (0.55, 0.59),
    "emphysema": (0.15, 0.3),
    "hydronephrosis": (0.35, 0.7),
}
# Drawn without a look at the image: true of nothing, as in life.
DISTRACTORS: dict[str, tuple[str, ...]] = {
    "lungs": ("The central airways are patent.", "Minor apical scarring.", "Breathing artefacts at the lung bases."),
    "pleura": ("No pneumothorax.", "Minor pleural thickening at the apex."),
    "heart": ("A pacemaker is in place.", "No pericardial effusion.", "A central venous catheter is in place."),
    "vessels": (
        "The great vessels are patent.",
        "No enlarged mediastinal lymph nodes.",
        "The thyroid is unremarkable.",
    ),
    "liver": (
        "The portal vein is patent.",
        "The bile ducts are of normal width.",
        "Surgical clips after cholecystectomy.",
    ),
    "spleen": ("An accessory spleen is noted.", "The pancreas is unremarkable."),
    "kidneys": ("The adrenal glands are unremarkable.", "The ureters are partly imaged."),
    "peritoneum": (
        "Degenerative changes of the thoracic spine.",
        "Old healed rib fractures.",
        "Mild scoliosis of the lumbar spine.",
        "Diverticulosis of the colon.",
        "Small umbilical hernia containing fat.",
    ),
}
NOTHING = ("No significant abnormality.", "Unremarkable examination.", "No acute finding.")
CLOSING = (
    "Clinical correlation is advised.",
    "Follow-up as clinically indicated.",
    "Comparison with prior studies is advised.",
)
