# Encoders and the diffusion model's condition: pretrain, align or fit, condition, adapt.
rule pretrain_encoder:
    input:
        checked=CHECKED,
        prepared=unpaired(),
    output:
        directory(f"{RESULTS}/models/{{method}}/pretrain"),
    log:
        f"{LOGS}/models/{{method}}/pretrain.log",
    benchmark:
        f"{BENCHMARKS}/models/{{method}}/pretrain.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=cards_of("pretrain"),
        mem_mb=grow(24000, processes_of("pretrain")),
        runtime=grow(1440),
    params:
        study=study_file,
        launcher=launcher("pretrain"),
        settings=settings_of("pretrain", method="method"),
        code=code_of("pretrain"),
        checkpoints=checkpoints,
    message:
        "Pretrain the encoder of {wildcards.method} on resting fMRI"
    shell:
        "{params.launcher} -m unimind pretrain --study {params.study} --method {wildcards.method} --prepared {input.prepared}"
        " --checkpoints {params.checkpoints} --out {output} 2> {log}"


rule align_subjects:
    input:
        checked=CHECKED,
        prepared=lambda wildcards: prepared(members(wildcards)),
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        pretrained=pretrained,
    output:
        directory(f"{RESULTS}/models/{{method}}/align/{{group}}"),
    log:
        f"{LOGS}/models/{{method}}/align/{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/models/{{method}}/align/{{group}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=cards_of("align"),
        mem_mb=grow(32000, processes_of("align")),
        runtime=grow(1440),
    params:
        study=study_file,
        launcher=launcher("align"),
        settings=settings_of("align", method="method"),
        code=code_of("align"),
        pretrained=option("pretrained"),
        checkpoints=checkpoints,
    message:
        "Align the embeddings of {wildcards.group} across subjects and with the pictures ({wildcards.method})"
    shell:
        "{params.launcher} -m unimind align --study {params.study} --method {wildcards.method} --group {wildcards.group}"
        " --prepared {input.prepared} --embeddings {input.embeddings} {params.pretrained}"
        " --checkpoints {params.checkpoints} --out {output} 2> {log}"


rule fit_decoder:
    input:
        checked=CHECKED,
        prepared=lambda wildcards: prepared(members(wildcards)),
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        training_prepared=lambda wildcards: prepared(priors(wildcards)),
        training_embeddings=lambda wildcards: embeddings(priors(wildcards)),
    output:
        directory(f"{RESULTS}/models/{{method}}/fit/{{group}}"),
    log:
        f"{LOGS}/models/{{method}}/fit/{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/models/{{method}}/fit/{{group}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        mem_mb=grow(32000),
        runtime=grow(240),
    params:
        study=study_file,
        settings=settings_of("fit", method="method"),
        code=code_of("fit"),
        training_prepared=option("training-prepared"),
        training_embeddings=option("training-embeddings"),
    message:
        "Fit {wildcards.method} to {wildcards.group}: voxels to image embeddings and latents"
    shell:
        "python -m unimind fit --study {params.study} --method {wildcards.method} --group {wildcards.group}"
        " --prepared {input.prepared} --embeddings {input.embeddings} {params.training_prepared} {params.training_embeddings}"
        " --out {output} 2> {log}"


rule condition_diffusion:
    input:
        checked=CHECKED,
        prepared=lambda wildcards: prepared(members(wildcards)),
        embeddings=lambda wildcards: embeddings(members(wildcards)),
        encoder=encoder,
        diffusion=network("diffusion"),
    output:
        directory(f"{RESULTS}/models/{{method}}/condition/{{group}}"),
    log:
        f"{LOGS}/models/{{method}}/condition/{{group}}.log",
    benchmark:
        f"{BENCHMARKS}/models/{{method}}/condition/{{group}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=cards_of("condition"),
        mem_mb=grow(32000, processes_of("condition")),
        runtime=grow(2880),
    params:
        study=study_file,
        launcher=launcher("condition"),
        settings=settings_of("condition", method="method"),
        code=code_of("condition"),
        encoder=option("encoder"),
        checkpoints=checkpoints,
    message:
        "Condition the diffusion model on the fMRI of {wildcards.group} ({wildcards.method})"
    shell:
        "{params.launcher} -m unimind condition --study {params.study} --method {wildcards.method} --group {wildcards.group}"
        " --prepared {input.prepared} --embeddings {input.embeddings} {params.encoder} --diffusion {input.diffusion}"
        " --checkpoints {params.checkpoints} --out {output} 2> {log}"


rule adapt_subject:
    input:
        checked=CHECKED,
        prepared=f"{RESULTS}/prepared/{{dataset}}/{{subject}}.h5",
        embeddings=stimuli_of_subject("embeddings"),
        shared=shared,
        diffusion=network("diffusion"),
        training_prepared=lambda wildcards: prepared(teachers(wildcards)),
        training_embeddings=lambda wildcards: embeddings(teachers(wildcards)),
    output:
        directory(f"{RESULTS}/models/{{method}}/adapt/{{dataset}}-{{subject}}"),
    log:
        f"{LOGS}/models/{{method}}/adapt/{{dataset}}-{{subject}}.log",
    benchmark:
        f"{BENCHMARKS}/models/{{method}}/adapt/{{dataset}}-{{subject}}.tsv"
    conda:
        "../../envs/networks.yaml"
    threads: STUDY.threads
    resources:
        gpu=cards_of("adapt"),
        mem_mb=grow(24000, processes_of("adapt")),
        runtime=grow(720),
    params:
        study=study_file,
        launcher=launcher("adapt"),
        settings=settings_of("adapt", method="method"),
        code=code_of("adapt"),
        checkpoints=checkpoints,
    message:
        "Adapt {wildcards.method} to the new subject {wildcards.subject} ({wildcards.dataset})"
    shell:
        "{params.launcher} -m unimind adapt --study {params.study} --method {wildcards.method} --dataset {wildcards.dataset}"
        " --subject {wildcards.subject} --prepared {input.prepared} --embeddings {input.embeddings}"
        " --shared {input.shared} --diffusion {input.diffusion} --training-prepared {input.training_prepared}"
        " --training-embeddings {input.training_embeddings} --checkpoints {params.checkpoints} --out {output} 2> {log}"
