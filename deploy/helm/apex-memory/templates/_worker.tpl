{{- /* The container of a worker. Call with (dict "root" $ "role" "bulk" "tag" "" "controlled" false "port" 9464). */ -}}
{{- define "apex.workerContainer" -}}
- name: {{ .role }}
  image: {{ include "apex.image" . }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args: [{{ .role }}]
  ports:
  - {name: {{ eq .port "9464" | ternary "metrics" "metrics-bulk" }}, containerPort: {{ .port }}}
  env:
  {{- include "apex.environment" . | nindent 2 }}
  - {name: APEX_{{ upper .role }}_METRICS, value: "0.0.0.0:{{ .port }}"}
  volumeMounts:
  {{- include "apex.mounts" . | nindent 2 }}
  - {name: data-{{ .role }}, mountPath: /var/lib/apex}
  startupProbe:
    httpGet: {path: /metrics, port: {{ .port }}}
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 60
  livenessProbe:
    httpGet: {path: /metrics, port: {{ .port }}}
    periodSeconds: 15
    timeoutSeconds: 10
    failureThreshold: 8
  readinessProbe:
    httpGet: {path: /metrics, port: {{ .port }}}
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 3
  resources: {{- toYaml (get .root.Values .role).resources | nindent 4 }}
  {{- include "apex.containerSecurity" .root | nindent 2 }}
{{- end -}}
