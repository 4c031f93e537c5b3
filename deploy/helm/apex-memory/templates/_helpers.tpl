{{- define "apex.name" -}}
{{- if contains "apex" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Labels that select pods. Call with (dict "root" $ "component" "worker"). */ -}}
{{- define "apex.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "apex.labels" -}}
{{ include "apex.selector" . }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- /* The image. Call with (dict "root" $ "tag" ""): a tag replaces the tag and the digest of the values. */ -}}
{{- define "apex.image" -}}
{{- $image := .root.Values.image -}}
{{- if .tag -}}
{{ printf "%s:%s" $image.repository .tag }}
{{- else if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{- /* Name and key of a Secret. Call with (dict "root" $ "entry" "documents"). */ -}}
{{- define "apex.secretName" -}}
{{- $entry := get .root.Values.secrets .entry -}}
{{- $entry.name | default .root.Values.secrets.existingSecret | required (printf "secrets.%s.name, or secrets.existingSecret: name a Secret that exists" .entry) -}}
{{- end -}}

{{- /* Secrets as files in one volume. Call with (dict "root" $ "entries" (list "documents")). */ -}}
{{- define "apex.secretVolume" -}}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
    {{- range .entries }}
    {{- $entry := get $.root.Values.secrets . }}
    - secret:
        name: {{ include "apex.secretName" (dict "root" $.root "entry" .) }}
        items: [{key: {{ $entry.key }}, path: {{ snakecase . }}}]
    {{- end }}
{{- end -}}

{{- /* The secrets of a gateway or a worker, joined by commas. */ -}}
{{- define "apex.secretEntries" -}}
{{- $entries := list "documents" "graph" "vectors" "cache" "secretKeys" -}}
{{- if .Values.secrets.documentsDirect.key }}{{ $entries = append $entries "documentsDirect" }}{{ end -}}
{{- if .Values.secrets.qdrantApiKey.key }}{{ $entries = append $entries "qdrantApiKey" }}{{ end -}}
{{- if .Values.secrets.temporalApiKey.key }}{{ $entries = append $entries "temporalApiKey" }}{{ end -}}
{{- join "," $entries -}}
{{- end -}}

{{- /* Environment of a gateway or a worker. Call with (dict "root" $ "controlled" false): the worker controller itself
       sets the connection to Temporal, the deployment and the build in the pods of its workers. */ -}}
{{- define "apex.environment" -}}
{{- $values := .root.Values -}}
- {name: APEX_SETTINGS_FILE, value: /etc/apex/apex.toml}
- {name: APEX_DOCUMENTS_FILE, value: /run/secrets/apex/documents}
{{- if $values.secrets.documentsDirect.key }}
- {name: APEX_DOCUMENTS_DIRECT_FILE, value: /run/secrets/apex/documents_direct}
{{- end }}
- {name: APEX_GRAPH_FILE, value: /run/secrets/apex/graph}
- {name: APEX_VECTORS_FILE, value: /run/secrets/apex/vectors}
- {name: APEX_CACHE_FILE, value: /run/secrets/apex/cache}
- {name: APEX_SECRET_KEY_FILE, value: /run/secrets/apex/secret_keys}
{{- if $values.secrets.qdrantApiKey.key }}
- {name: APEX_QDRANT_API_KEY_FILE, value: /run/secrets/apex/qdrant_api_key}
{{- end }}
{{- include "apex.tlsEnvironment" .root }}
- {name: APEX_ROUTING, value: {{ eq $values.workers.versioning "controller" | ternary "external" "self" }}}
{{- if not .controlled }}
- name: APEX_TEMPORAL
  value: {{ printf "%s/%s" (required "temporal.address: name the frontend of a Temporal server, host:port" $values.temporal.address) $values.temporal.namespace | quote }}
{{- if eq $values.workers.versioning "controller" }}
- {name: APEX_DEPLOYMENT_NAME, value: {{ printf "%s/%s-worker" .root.Release.Namespace (include "apex.name" .root) | quote }}}
{{- end }}
{{- if $values.secrets.temporalApiKey.key }}
- {name: APEX_TEMPORAL_API_KEY_FILE, value: /run/secrets/apex/temporal_api_key}
{{- end }}
{{- if $values.temporal.tls.clientCertificate }}
- {name: APEX_TEMPORAL_CLIENT_CERT_FILE, value: /run/secrets/temporal-client/tls.crt}
- {name: APEX_TEMPORAL_CLIENT_KEY_FILE, value: /run/secrets/temporal-client/tls.key}
{{- end }}
{{- end }}
{{- with $values.temporal.uiUrl }}
- {name: APEX_TEMPORAL_UI, value: {{ . | quote }}}
{{- end }}
{{- if $values.temporal.tls.enabled }}
- {name: APEX_TEMPORAL_TLS, value: "true"}
{{- with $values.temporal.tls.serverName }}
- {name: APEX_TEMPORAL_TLS_SERVER_NAME, value: {{ . | quote }}}
{{- end }}
{{- if $values.temporal.tls.authority.name }}
- {name: APEX_TEMPORAL_TLS_CA_FILE, value: {{ printf "/etc/temporal-ca/%s" $values.temporal.tls.authority.key | quote }}}
{{- end }}
{{- end }}
{{- with $values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ $values.tracing.sampleRatio | quote }}}
{{- end }}
{{- with $values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* TLS to the stores: whom it trusts, and what it shows. For every process that opens a store. */ -}}
{{- define "apex.tlsEnvironment" -}}
{{- if .Values.authority.name }}
- {name: APEX_CA_FILE, value: {{ printf "/etc/apex-ca/%s" .Values.authority.key | quote }}}
{{- end }}
{{- if .Values.clientCertificate }}
- {name: APEX_CLIENT_CERTIFICATE_FILE, value: /run/secrets/client/tls.crt}
- {name: APEX_CLIENT_KEY_FILE, value: /run/secrets/client/tls.key}
{{- end }}
{{- end -}}

{{- define "apex.tlsMounts" -}}
{{- if .Values.authority.name }}
- {name: authority, mountPath: /etc/apex-ca, readOnly: true}
{{- end }}
{{- if .Values.clientCertificate }}
- {name: client, mountPath: /run/secrets/client, readOnly: true}
{{- end }}
{{- end -}}

{{- define "apex.tlsVolumes" -}}
{{- if .Values.authority.name }}
- name: authority
  configMap: {name: {{ .Values.authority.name }}}
{{- end }}
{{- if .Values.clientCertificate }}
- name: client
  secret: {secretName: {{ .Values.clientCertificate }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- /* Mounts and volumes of a gateway or a worker. */ -}}
{{- define "apex.mounts" -}}
{{- $values := .root.Values -}}
- {name: settings, mountPath: /etc/apex, readOnly: true}
- {name: secrets, mountPath: /run/secrets/apex, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- include "apex.tlsMounts" .root }}
{{- if and $values.temporal.tls.enabled $values.temporal.tls.authority.name }}
- {name: temporal-ca, mountPath: /etc/temporal-ca, readOnly: true}
{{- end }}
{{- if and $values.temporal.tls.clientCertificate (not .controlled) }}
- {name: temporal-client, mountPath: /run/secrets/temporal-client, readOnly: true}
{{- end }}
{{- end -}}

{{- define "apex.volumes" -}}
{{- $values := .root.Values -}}
- name: settings
  configMap: {name: {{ include "apex.name" .root }}-settings}
{{- include "apex.secretVolume" (dict "root" .root "entries" (splitList "," (include "apex.secretEntries" .root))) | nindent 0 }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- include "apex.tlsVolumes" .root }}
{{- if and $values.temporal.tls.enabled $values.temporal.tls.authority.name }}
- name: temporal-ca
  configMap: {name: {{ $values.temporal.tls.authority.name }}}
{{- end }}
{{- if and $values.temporal.tls.clientCertificate (not .controlled) }}
- name: temporal-client
  secret: {secretName: {{ $values.temporal.tls.clientCertificate }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- /* What every pod of the chart has. Call with (dict "root" $ "component" "worker").
       Service links are off: Kubernetes would set variables such as APEX_GATEWAY_PORT, and Apex refuses those it does not know. */ -}}
{{- define "apex.pod" -}}
{{- $values := .root.Values -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "apex.spread" -}}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: {{ $.root.Values.topologySpread.whenUnsatisfiable }}
  labelSelector:
    matchLabels: {{- include "apex.selector" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "apex.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{- /* Annotations of pods: the settings' checksum restarts them after a change. */ -}}
{{- define "apex.podAnnotations" -}}
checksum/settings: {{ .Values.settings | sha256sum }}
{{- with .Values.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}
