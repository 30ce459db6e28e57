{{/* Names. Deployments end in -worker-MODEL, so the release's part is kept short. */}}
{{- define "clip-queue.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end -}}
{{- end }}

{{- define "clip-queue.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "clip-queue.labels" -}}
{{ include "clip-queue.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* A model's name as Kubernetes takes it: ViT-L-14-336px is vit-l-14-336px. */}}
{{- define "clip-queue.slug" -}}
{{- regexReplaceAll "[^a-z0-9]+" (lower .) "-" | trimAll "-" -}}
{{- end }}

{{/* A model as CLIP_QUEUE_MODELS has it. */}}
{{- define "clip-queue.model" -}}
{{ .name }}{{ with .source }}={{ . }}{{ end }}
{{- end }}

{{- define "clip-queue.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ get $image .name }}:{{ $image.tag | default .root.Chart.AppVersion -}}
{{- end }}

{{/* A setting's value as text. Helm reads numbers as floats, and would write 67108864 as 6.7108864e+07. */}}
{{- define "clip-queue.text" -}}
{{- if kindIs "slice" . }}{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}
{{- else }}{{ toString . }}{{ end -}}
{{- end }}

{{/* What API and workers have in common of the environment. */}}
{{- define "clip-queue.env" -}}
- name: CLIP_QUEUE_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ .root.Values.redis.existingSecret | default (include "clip-queue.fullname" .root) }}
      key: {{ .root.Values.redis.key }}
{{- range $name, $value := .settings }}
- name: CLIP_QUEUE_{{ upper $name }}
  value: {{ include "clip-queue.text" $value | quote }}
{{- end }}
{{- with .root.Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What every pod may and may not. The images' user is 10001. */}}
{{- define "clip-queue.pod" -}}
automountServiceAccountToken: false
# Kubernetes would set CLIP_QUEUE_…_PORT for each Service; settings begin like that.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "clip-queue.container" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "clip-queue.placement" -}}
{{- range $name := list "nodeSelector" "tolerations" "affinity" }}
{{- with get $ $name }}
{{ $name }}:
{{ toYaml . | indent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where every pod may go, and what stands for the internet in a network policy. */}}
{{- define "clip-queue.dns-and-redis" -}}
- ports: # DNS, wherever the cluster has it
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
- ports:
    {{- range .redis.ports }}
    - { protocol: TCP, port: {{ . }} }
    {{- end }}
  {{- with .redis.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "clip-queue.internet" -}}
- ipBlock: { cidr: 0.0.0.0/0, except: {{ toJson .except }} }
- ipBlock: { cidr: "::/0", except: {{ toJson .exceptIPv6 }} }
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "clip-queue.check" -}}
{{- $v := .Values -}}
{{- if and (not $v.redis.url) (not $v.redis.existingSecret) }}{{ fail "redis.url or redis.existingSecret must be set: the chart brings no Redis" }}{{ end -}}
{{- if and $v.redis.url $v.redis.existingSecret }}{{ fail "redis.url and redis.existingSecret are both set: give one" }}{{ end -}}
{{- if and $v.apiKeys.keys $v.apiKeys.existingSecret }}{{ fail "apiKeys.keys and apiKeys.existingSecret are both set: give one" }}{{ end -}}
{{- if and $v.weights.size $v.weights.existingClaim }}{{ fail "weights.size and weights.existingClaim are both set: give one" }}{{ end -}}
{{- if and $v.keda.enabled (not $v.keda.prometheus) }}{{ fail "keda.prometheus must be set: the address of a Prometheus that reads /metrics" }}{{ end -}}
{{- if and $v.ingress.enabled (not $v.ingress.host) }}{{ fail "ingress.host must be set" }}{{ end -}}
{{- if gt (len (include "clip-queue.fullname" .)) 40 }}{{ fail "the release's name is too long: with clip-queue it has more than 40 characters" }}{{ end -}}
{{- $seen := dict -}}
{{- range $v.models }}
{{- $slug := include "clip-queue.slug" .name -}}
{{- if hasKey $seen $slug }}{{ fail (printf "models %q and %q would have the same name in Kubernetes: %s" (get $seen $slug) .name $slug) }}{{ end -}}
{{- $_ := set $seen $slug .name -}}
{{- end -}}
{{- end }}
