# Whatever a laboratory has -> stimulus files and one prepared file per subject.
localrules:
    fetch_stimuli,
    fetch_subject,
    fetch_unpaired,


rule fetch_stimuli:
    output:
        f"{RESULTS}/fetched/{{dataset}}/{{stimuli}}.json",
    log:
        f"{LOGS}/fetched/{{dataset}}/{{stimuli}}.log",
    benchmark:
        f"{BENCHMARKS}/fetched/{{dataset}}/{{stimuli}}.tsv"
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=720,
    params:
        study=study_file,
        settings=settings_of("fetch", dataset="dataset"),
        code=code_of("fetch"),
        subject=own_stimuli,
    message:
        "Fetch the pictures shown in {wildcards.dataset}"
    shell:
        "python -m unimind fetch --study {params.study} --dataset {wildcards.dataset} --stimuli {params.subject}"
        " --out {output} 2> {log}"


rule fetch_subject:
    output:
        f"{RESULTS}/fetched/{{dataset}}/{{subject}}.json",
    log:
        f"{LOGS}/fetched/{{dataset}}/{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/fetched/{{dataset}}/{{subject}}.tsv"
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
    params:
        study=study_file,
        settings=settings_of("fetch", dataset="dataset"),
        code=code_of("fetch"),
    message:
        "Fetch the fMRI of {wildcards.subject} ({wildcards.dataset})"
    shell:
        "python -m unimind fetch --study {params.study} --dataset {wildcards.dataset} --subject {wildcards.subject}"
        " --out {output} 2> {log}"


rule fetch_unpaired:
    output:
        f"{RESULTS}/fetched/unpaired/{{scanned}}.json",
    log:
        f"{LOGS}/fetched/unpaired/{{scanned}}.log",
    benchmark:
        f"{BENCHMARKS}/fetched/unpaired/{{scanned}}.tsv"
    retries: 2
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=1440,
    params:
        study=study_file,
        settings=settings_of("fetch-unpaired"),
        code=code_of("fetch"),
    message:
        "Fetch the resting fMRI of {wildcards.scanned}"
    shell:
        "python -m unimind fetch --study {params.study} --unpaired --subject {wildcards.scanned} --out {output} 2> {log}"


rule prepare_stimuli:
    input:
        f"{RESULTS}/fetched/{{dataset}}/{{stimuli}}.json",
    output:
        f"{RESULTS}/prepared/{{dataset}}/{{stimuli}}.h5",
    log:
        f"{LOGS}/prepared/{{dataset}}/{{stimuli}}.log",
    benchmark:
        f"{BENCHMARKS}/prepared/{{dataset}}/{{stimuli}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=grow(8000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of("stimuli", dataset="dataset"),
        code=code_of("stimuli"),
        subject=own_stimuli,
    message:
        "Bring the pictures of {wildcards.dataset} ({wildcards.stimuli}) to one size and one file"
    shell:
        "python -m unimind stimuli --study {params.study} --dataset {wildcards.dataset} {params.subject}"
        " --fetched {input} --out {output} 2> {log}"


rule prepare_subject:
    input:
        fetched=f"{RESULTS}/fetched/{{dataset}}/{{subject}}.json",
        stimuli=stimuli_of_subject("prepared"),
        training_stimuli=training_stimuli,
    output:
        f"{RESULTS}/prepared/{{dataset}}/{{subject}}.h5",
    log:
        f"{LOGS}/prepared/{{dataset}}/{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/prepared/{{dataset}}/{{subject}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=grow(16000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of("prepare", dataset="dataset", subject="subject"),
        code=code_of("prepare"),
        training_stimuli=option("training-stimuli"),
    message:
        "Prepare the fMRI of {wildcards.subject} ({wildcards.dataset}): ROI voxels, z-scored per session, split by picture"
    shell:
        "python -m unimind prepare --study {params.study} --dataset {wildcards.dataset} --subject {wildcards.subject}"
        " --fetched {input.fetched} --stimuli {input.stimuli} {params.training_stimuli} --out {output} 2> {log}"


rule prepare_unpaired:
    input:
        f"{RESULTS}/fetched/unpaired/{{scanned}}.json",
    output:
        f"{RESULTS}/prepared/unpaired/{{scanned}}.h5",
    log:
        f"{LOGS}/prepared/unpaired/{{scanned}}.log",
    benchmark:
        f"{BENCHMARKS}/prepared/unpaired/{{scanned}}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=grow(8000),
        runtime=grow(120),
    params:
        study=study_file,
        settings=settings_of("prepare-unpaired"),
        code=code_of("prepare-unpaired"),
    message:
        "Prepare the resting fMRI of {wildcards.scanned}: visual cortex, averaged in short windows"
    shell:
        "python -m unimind prepare-unpaired --study {params.study} --subject {wildcards.scanned} --fetched {input}"
        " --out {output} 2> {log}"


rule check_subjects:
    input:
        prepared=prepared(STUDY.pairs()),
        unpaired=unpaired(),
    output:
        update(OVERVIEW),
    log:
        f"{LOGS}/prepared/overview.log",
    benchmark:
        f"{BENCHMARKS}/prepared/overview.tsv"
    conda:
        "../../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=grow(4000),
        runtime=grow(60),
    params:
        study=study_file,
        settings=settings_of("overview"),
        code=code_of("overview"),
        unpaired=option("unpaired"),
    message:
        "Check the data of all subjects before anything is trained"
    shell:
        "python -m unimind overview --study {params.study} --prepared {input.prepared} {params.unpaired}"
        " --out {output} 2> {log}"
